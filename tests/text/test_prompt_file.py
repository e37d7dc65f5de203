"""Prompt files: exact reading, errors with line or entry, bounded memory."""

import codecs
import hashlib
import json

import pytest

from simjax.errors import ConfigError
from simjax.text import prompt_file, prompts
from tests.helpers import memory

TWO = ["a cat", "a dog"]
LONG = prompt_file.LONGEST


def read(path):
    """The prompts, after checking that the survey agrees."""
    found, survey = list(prompts.read_prompts(path)), prompts.survey(path)
    assert survey.count == len(found)
    return found


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


KINDS = {
    "p.csv": "id,caption\n1,a cat\n2,a dog\n",
    "p.json": '[{"caption": "a cat"},\n{"caption": "a dog"}]\n',
    "p.jsonl": '{"text": "a cat"}\n{"text": "a dog"}\n',
    "p.tsv": "Prompt\tid\na cat\t1\na dog\t2\n",
    "p.txt": "a cat\na dog",
    "p": "a cat\n\na dog",
}


@pytest.mark.parametrize("block", [1, 7, 2**20])
@pytest.mark.parametrize("start", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", KINDS)
def test_every_file_type_is_read_with_any_line_end(tmp_path, monkeypatch, name, end, start, block):
    monkeypatch.setattr(prompt_file, "BLOCK", block)
    content = start + KINDS[name].replace("\n", end).encode()
    assert read(write(tmp_path, name, content)) == TWO


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("p.csv", 'text,caption\nx,"a ""red"", old cat"\ny,\n', ['a "red", old cat']),
        ("p.csv", '"CAPTION"\r\n"two\r\nlines"\r\n\r\n"b\nc"\r\n', ["two\r\nlines", "b\nc"]),
        ("p.csv", "caption,id\n,\n,1\n日本,2\n", ["日本"]),
        ("p.json", '["a cat", "", " \\u65e5\\n本 "]', ["a cat", "日\n本"]),
        ("p.json", '\n [ {"Caption": "x", "text": "y"} , "\\ud83d\\ude00" ] \n', ["x", "😀"]),
        ("p.jsonl", '"a cat"\n\n{"id": [1, {"a": 2}], "prompt": "a dog"}', TWO),
        ("p.TXT", "日本\u2028x\x0b\x85y\n", ["日本\u2028x\x0b\x85y"]),
    ],
)
def test_quotes_escapes_and_embedded_line_ends_are_kept(
    tmp_path, monkeypatch, name, content, expected
):
    assert read(write(tmp_path, name, content)) == expected
    monkeypatch.setattr(prompt_file, "BLOCK", 3)
    assert read(tmp_path / name) == expected


def test_the_checksum_distinguishes_line_ends_within_and_between_prompts(tmp_path):
    first = prompts.survey(write(tmp_path, "p.json", '["a\\nb", "c"]'))
    second = prompts.survey(write(tmp_path, "q.json", '["a", "b\\nc"]'))
    assert first.count == second.count and first.sha256 != second.sha256
    plain = hashlib.sha256(b"a\nb\n").hexdigest()  # unchanged for prompts without line ends
    assert prompts.survey(write(tmp_path, "p.txt", "a\nb")).sha256 == plain


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.parquet", b"PAR1", r"\.parquet is not a known file .* Rename a text file .* NAME\.txt"),
        (
            "p.xlsx",
            b"PK\3\4",
            r"\.xlsx is not a known file type of prompts; known: \.txt, \.tsv, \.csv",
        ),
        ("p.txt", b"PK\3\4\0\0\n", "line 1: not utf-8 text"),
        ("p.txt", "a\nb".encode("utf-16"), "line 1: utf-16 .*expected utf-8; save it as utf-8"),
        ("p.json", "[]".encode("utf-32"), "line 1: utf-16 .*expected utf-8"),
        (
            "p.csv",
            "a cat\na dog\n",
            "columns of the first row are 'a cat'; expected .* one of them",
        ),
        ("p.csv", "id;caption\n1;a cat\n", "'id;caption'; expected columns separated by commas"),
        ("p.csv", "caption,id,caption\na,1,b\n", "line 1: two columns are named caption"),
        ("p.csv", "caption,id\na,b,c\n", "line 2: 3 columns, expected 2"),
        ("p.csv", 'caption\n"a cat\n', "line 2: unexpected end of data"),
        ("p.csv", 'caption\n"a" cat\n', "line 2: .*quotes within quotes doubled"),
        (
            "p.csv",
            'caption\n"' + "a\n" * LONG,
            "more than 65536 characters; a quote may be unclosed",
        ),
        ("p.csv", 'caption\n"a\n"' + ',"b\n"' * LONG, "more than 65536 characters; a quote"),
        ("p.csv", b"caption\na\n\xe9\n", "line 3: not utf-8"),
        ("p.json", '{"caption": "a"}\n', r"at the beginning .*name it \.jsonl.*found {, expected"),
        ("p.json", "", "at the beginning .*found the end"),
        ("p.json", "[]", "has no prompts"),
        ("p.json", '["a", 3]', "entry 2: no prompt; expected strings, or objects with caption"),
        ("p.json", '["a", {"url": "x"}]', "entry 2: no prompt"),
        ("p.json", '["a", {"caption": null}]', "entry 2: no prompt"),
        (
            "p.json",
            '["a", {"caption": "x", "Caption": "y"}]',
            "entry 2: two keys with the same name",
        ),
        ("p.json", '["a" "b"]', 'entry 1: found ", expected , or ]'),
        ("p.json", '["a", "b"', "entry 2: found the end"),
        ("p.json", '["a"] ["b"]', "after the list: found .*, expected the end"),
        ("p.json", '["a", "b\n', "entry 2: Invalid control character|Unterminated"),
        ("p.json", '["\\ud800"]', "entry 1: not utf-8 text"),
        ("p.json", '["a\\u0000"]', "entry 1: not utf-8 text"),
        ("p.json", b'["\xe9"]', "entry 1: not utf-8 text"),
        ("p.json", "[" * 100_000, "entry 1: "),
        (
            "p.json",
            '["' + "a" * LONG + '"]',
            "entry 1: 65538 characters; .* at most 65536",
        ),
        ("p.json", '["' + "a" * 10**7, "entry 1: Unterminated string .* at most 65536"),
        ("p.json", " " * 10**7, "at the beginning"),
        ("p.jsonl", '"a"\n[1]\n', "line 2: no prompt"),
        ("p.jsonl", '"a"\na dog\n', "line 2: Expecting value"),
        ("p.jsonl", '"a" "b"\n', "line 1: Extra data"),
        ("p.jsonl", '"' + "a" * LONG, "line 1: more than 65536 characters"),
        ("p.txt", "\r\n" * 5 + "a" * 10**7, "line 6: more than 65536 characters"),
    ],
)
def test_invalid_files_are_refused_with_the_place(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(ConfigError, match=message) as error:
        prompts.survey(path)
    assert str(error.value).startswith(str(path)) and len(str(error.value)) < 500


@pytest.mark.parametrize("name", ["p.txt", "p.json", "p.jsonl", "p.csv"])
def test_long_files_take_little_memory(tmp_path, monkeypatch, name):
    monkeypatch.setattr(prompt_file, "BLOCK", 2**14)
    entries = [json.dumps(f"prompt {number}") for number in range(20_000)]
    texts = {"p.json": f"[{', '.join(entries)}]", "p.csv": "\n".join(["caption", *entries])}
    path = write(tmp_path, name, texts.get(name, "\n".join(entries)))
    count, peak = memory.peak(lambda: sum(1 for _ in prompts.read_prompts(path)))
    assert count == 20_000
    assert peak < 2**20
