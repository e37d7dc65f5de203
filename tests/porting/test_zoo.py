"""Checkpoints by name, URL or path: downloads survive network errors, the cache damaged files."""

import collections
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from simjax import config
from simjax.errors import ConfigError
from simjax.porting import zoo
from simjax.porting.files import cache, download
from tests.helpers.file_server import Site, serve

CONTENT = np.random.default_rng(0).bytes(1_000_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def cache_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF", 0.001)
    monkeypatch.setattr(download, "CHUNK", 10_000)
    return tmp_path / "cache"


@pytest.fixture
def site():
    with serve(Site(CONTENT)) as running:
        yield running


def quiet(text: str) -> None:
    """Discards messages."""


def fetch(source: str, **options) -> cache.LocalFile:
    return zoo.fetch(source, say=quiet, **options)


def complete_files(directory) -> list[str]:
    """Names of files in the cache that look complete."""
    ends = (".json", ".lock", ".part", ".version", ".tmp")
    return [path.name for path in directory.iterdir() if not path.name.endswith(ends)]


def given_up(site: Site, message: str, **options) -> str:
    with pytest.raises(ConfigError, match=message) as error:
        fetch(site.url, **options)
    return str(error.value)


# The table.


def test_every_file_of_the_release_has_a_url():
    release = {name: entry for name, entry in zoo.ZOO.items() if "XL-2" not in name}
    assert len(release) == 17
    for name, entry in release.items():
        folder = "baseline/" if name.startswith("baseline-") else ""
        base = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
        assert entry.url == f"{base}{folder}{name}.pkl"
        assert entry.sha256 is None
        assert (entry.network is None) == name.startswith("baseline-")


def test_networks_match_edm_table_7():
    common = {"channels": 128, "blocks": 4, "attention_resolutions": (16,), "augment_dim": 9}
    ve = {"embedding": "fourier", "noise_channels": 2, "encoder": "residual"}
    expected = {
        "edm-cifar10-32x32-cond-vp": {"channel_mult": (2, 2, 2), "dropout": 0.13, "label_dim": 10},
        "edm-cifar10-32x32-uncond-ve": {"label_dim": 0, "filter_taps": (1, 3, 3, 1), **ve},
        "edm-ffhq-64x64-uncond-vp": {"dropout": 0.05, "resolution": 64, "encoder": "standard"},
        "edm-afhqv2-64x64-uncond-ve": {"dropout": 0.25, "channel_mult": (1, 2, 2, 2), **ve},
    }
    for name, fields in expected.items():
        found = dataclasses.asdict(zoo.find(name).network)
        assert found | common | fields == found
    imagenet = zoo.find("edm-imagenet-64x64-cond-adm").network
    assert imagenet == config.AdmUNet(label_dim=1000, augment_dim=0)


def test_transformers_have_the_latent_resolution_of_their_images():
    pixels = {name: entry for name, entry in zoo.ZOO.items() if "XL-2" in name}
    assert len(pixels) == 6
    for name, entry in pixels.items():
        size = int(re.search(r"256|512|1024", name)[0])
        assert entry.network.resolution == size // 8
        if "SiT" in name:
            assert entry.precondition == "sit"
            continue
        assert entry.url.rpartition("/")[2] == name + (".pt" if "DiT" in name else ".pth")
        assert entry.precondition == "ddpm_linear"
        assert getattr(entry.network, "size_conditioning", False) == (size == 1024)


def test_an_entry_may_be_modified_without_changing_the_zoo():
    zoo.find("edm-ffhq-64x64-uncond-vp").network.dropout = 0.5
    assert zoo.find("edm-ffhq-64x64-uncond-vp").network.dropout == 0.05


def test_an_unknown_name_gets_similar_ones():
    with pytest.raises(ConfigError) as error:
        fetch("edm-cifar-32x32-cond-vp")
    assert "edm-cifar10-32x32-cond-vp" in str(error.value)
    assert "an http(s):// URL, or a path" in str(error.value)


@pytest.mark.parametrize("source", ["file:///etc/hostname", "ftp://host/x.pkl", "http:///x.pkl"])
def test_other_url_schemes_are_refused(source):
    with pytest.raises(ConfigError, match="only http:// and https:// URLs"):
        fetch(source)


# Paths.


def test_a_path_is_used_in_place(tmp_path, cache_directory):
    path = tmp_path / "mine.pkl"
    path.write_bytes(CONTENT)
    found = fetch(str(path), sha256=SHA256.upper())
    assert (str(found.path), found.sha256, found.source) == (str(path), SHA256, str(path))
    assert not cache_directory.exists()
    with pytest.raises(ConfigError, match=f"has sha256 {SHA256}, expected 00"):
        fetch(str(path), sha256="0" * 64)
    with pytest.raises(ConfigError, match="is a directory"):
        fetch(str(tmp_path))
    with pytest.raises(ConfigError, match="absent.pkl does not exist"):
        fetch(str(tmp_path / "absent.pkl"))
    with pytest.raises(ConfigError, match="expected 64 hexadecimal digits"):
        fetch(str(path), sha256="abc")


@pytest.mark.parametrize("source", ["org/t5-v1.1", "https://huggingface.co/org/t5-v1.1/"])
def test_a_hugging_face_repository_gets_the_download_command(source):
    with pytest.raises(ConfigError) as error:
        fetch(source)
    assert "download the folder first" in str(error.value)
    assert "hf download org/t5-v1.1 --local-dir t5-v1.1" in str(error.value)


@pytest.mark.parametrize("source", ["folder/net.pkl", "./org/name", "a/b/c", "/org/name"])
def test_other_missing_paths_are_not_taken_for_repositories(source):
    with pytest.raises(ConfigError, match="does not exist.$"):
        fetch(source)


# Downloads.


def test_a_file_is_downloaded_once_and_recorded(site, cache_directory):
    first = fetch(site.url)
    assert first.path.read_bytes() == CONTENT
    assert (first.sha256, first.source) == (SHA256, site.url)
    record = json.loads((cache_directory / f"{first.path.name}.json").read_text())
    assert (record["url"], record["size"], record["sha256"]) == (site.url, len(CONTENT), SHA256)
    assert fetch(site.url) == first
    assert site.requests == [("", len(CONTENT))]


def test_a_known_name_is_downloaded_from_its_url(site, monkeypatch):
    monkeypatch.setitem(zoo.ZOO, "edm-test", zoo.Entry(site.url, None, SHA256))
    found = fetch("edm-test")
    assert (found.source, found.sha256) == ("edm-test", SHA256)
    monkeypatch.setitem(zoo.ZOO, "edm-test", zoo.Entry(site.url, None, "0" * 64))
    with pytest.raises(ConfigError, match=f"has sha256 {SHA256}, expected 000"):
        fetch("edm-test")


def test_a_cached_file_needs_no_network_and_no_writable_cache(monkeypatch):
    with serve(Site(CONTENT)) as site:
        first = fetch(site.url)

    def read_only(*args):
        raise PermissionError

    monkeypatch.setattr(cache, "_locked", read_only)
    assert fetch(site.url) == first


def test_after_an_interruption_only_the_missing_bytes_are_sent(site):
    site.cut_after = 400_000
    said = []
    assert zoo.fetch(site.url, say=said.append).sha256 == SHA256
    assert site.requests == [("", 400_000), ("bytes=400000-", 600_000)]
    assert "the connection ended after 400000 of 1000000 bytes; trying again" in said[1]


def test_a_later_run_resumes_the_download(site, cache_directory, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cut_after = 400_000
    message = given_up(site, "ended after 400000 of 1000000 bytes. Run again to continue")
    assert f"put it at {cache_directory}/teacher.pkl" in message
    assert complete_files(cache_directory) == []
    assert fetch(site.url).sha256 == SHA256
    assert site.requests[1] == ("bytes=400000-", 600_000)


def test_a_server_that_ignores_range_sends_the_whole_file_again(site):
    site.cut_after, site.ignores_range = 400_000, True
    assert fetch(site.url).sha256 == SHA256
    assert site.requests[1] == ("bytes=400000-", 1_000_000)


@pytest.mark.parametrize("ignores_if_range", [False, True])
def test_two_versions_of_a_file_are_never_spliced(site, monkeypatch, ignores_if_range):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cut_after = 400_000
    given_up(site, "ended after")
    site.content, site.etag = CONTENT[::-1], '"v2"'
    site.ignores_if_range = ignores_if_range
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    assert fetch(site.url).path.read_bytes() == CONTENT[::-1]
    requested_again = [("", 1_000_000)] if ignores_if_range else []
    rest = 600_000 if ignores_if_range else 1_000_000
    assert site.requests[1:] == [("bytes=400000-", rest), *requested_again]


def test_a_partial_response_at_another_offset_is_not_appended(site):
    site.cut_after, site.shifted = 400_000, 5
    assert fetch(site.url).sha256 == SHA256
    assert [requested for requested, _ in site.requests] == ["", "bytes=400000-", ""]


def test_without_a_strong_etag_or_date_nothing_is_resumed(site):
    site.etag, site.cut_after = 'W/"weak"', 400_000
    assert fetch(site.url).sha256 == SHA256
    assert [requested for requested, _ in site.requests] == ["", ""]


def test_a_partial_file_longer_than_the_servers_is_dropped(site, monkeypatch):
    monkeypatch.setattr(download, "ATTEMPTS", 1)
    site.cut_after = 400_000
    given_up(site, "ended after")
    site.content = CONTENT[:300_000]
    monkeypatch.setattr(download, "ATTEMPTS", 2)
    assert fetch(site.url).path.read_bytes() == CONTENT[:300_000]


def test_transient_server_errors_are_retried(site):
    site.errors = [500, 503, 429]
    assert fetch(site.url).sha256 == SHA256


def test_retries_are_limited(site, cache_directory):
    site.errors = [503] * download.ATTEMPTS
    given_up(site, "cannot be downloaded: the server returned 503")
    assert complete_files(cache_directory) == []


def test_not_found_is_not_retried(site, cache_directory):
    site.errors = [404, 404]
    message = given_up(site, "the server returned 404 Not Found; check the URL")
    assert site.url in message
    assert f"{cache_directory}/teacher.pkl" in message
    assert site.errors == [404]


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (CONTENT, "text/html; charset=utf-8"),
        (b"\n<!DOCTYPE html>" + CONTENT, "application/octet-stream"),
        (b"<HTML><body>log in</body>", ""),
    ],
)
def test_a_web_page_is_refused(site, cache_directory, content, content_type):
    site.content, site.content_type = content, content_type
    given_up(site, "is a web page, not a file")
    assert complete_files(cache_directory) == []
    site.content, site.content_type = CONTENT, "application/octet-stream"
    assert fetch(site.url).sha256 == SHA256


@pytest.mark.parametrize("target", ["file:///etc/hostname", "ftp://127.0.0.1/teacher.pkl"])
def test_redirects_to_other_schemes_are_refused(site, target, cache_directory):
    site.redirect = target
    given_up(site, "only http:|Redirection to url .* is not allowed")
    assert complete_files(cache_directory) == []


def test_a_redirect_to_another_server_is_followed_and_resumed(site):
    with serve(Site(b"", redirect=site.url)) as front:
        site.cut_after = 400_000
        assert fetch(front.url).sha256 == SHA256
    assert site.requests[1] == ("bytes=400000-", 600_000)


def test_without_a_network_the_error_has_url_and_path(cache_directory):
    with serve(Site(CONTENT)) as site:
        pass
    message = given_up(site, "cannot be downloaded: .*refused")
    assert site.url in message
    assert f"put it at {cache_directory}/teacher.pkl" in message


def test_a_full_disk_is_detected_before_writing(site, monkeypatch, cache_directory):
    usage = collections.namedtuple("Usage", "free")
    monkeypatch.setattr(download.shutil, "disk_usage", lambda path: usage(999_999))
    given_up(site, "1.0 MB free, the download needs 1.0 MB more")
    assert not list(cache_directory.glob("*.part"))


def test_an_unwritable_cache_is_refused_by_name(site, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SIMJAX_CACHE", str(tmp_path / "file"))
    given_up(site, "cannot be used: .*; set SIMJAX_CACHE to another one")


# Checksums.


def test_a_download_with_another_checksum_is_not_kept(site, cache_directory):
    given_up(site, f"the download has sha256 {SHA256}, expected 000", sha256="0" * 64)
    assert complete_files(cache_directory) == []
    assert not list(cache_directory.glob("*.part"))
    assert fetch(site.url, sha256=SHA256).sha256 == SHA256


def test_a_damaged_cached_file_is_detected(site):
    path = fetch(site.url).path
    path.write_bytes(CONTENT[:-1] + b"?")
    given_up(site, "is damaged: sha256 .*, but .* at its first use .*; delete the file")
    path.unlink()
    assert fetch(site.url).sha256 == SHA256


def test_a_file_downloaded_again_must_match_its_record(site):
    path = fetch(site.url).path
    path.unlink()
    site.content = CONTENT[::-1]
    given_up(site, f"expected {SHA256}, and was deleted.*teacher.pkl.json if an earlier")
    reversed_sha256 = hashlib.sha256(site.content).hexdigest()
    assert fetch(site.url, sha256=reversed_sha256).sha256 == reversed_sha256
    assert fetch(site.url).sha256 == reversed_sha256


# Several files, several processes.


def test_a_file_put_there_by_hand_is_used_and_recorded(site, cache_directory):
    cache_directory.mkdir()
    by_hand = cache_directory / "teacher.pkl"
    by_hand.write_bytes(CONTENT)
    said = []
    assert str(zoo.fetch(site.url, say=said.append).path) == str(by_hand)
    assert "put there by hand" in said[0]
    assert site.requests == []
    by_hand.write_bytes(b"damaged")
    given_up(site, "teacher.pkl is damaged")


def test_equal_file_names_of_two_urls_do_not_collide(site, cache_directory):
    cache_directory.mkdir()
    (cache_directory / "teacher.pkl").write_bytes(b"put by hand for the first")
    other = site.url.replace("folder", "elsewhere")
    assert fetch(site.url).path.read_bytes() == b"put by hand for the first"
    second = fetch(other)
    third = fetch(other + "?version=3")
    assert second.path.read_bytes() == third.path.read_bytes() == CONTENT
    assert len({second.path, third.path, cache_directory / "teacher.pkl"}) == 3


def test_two_concurrent_requests_download_once(site):
    site.stall = threading.Event()
    said, found = [], []
    threads = [
        threading.Thread(target=lambda: found.append(zoo.fetch(site.url, say=said.append)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for _ in range(1000):
        if any("waiting for another process" in line for line in said):
            break
        time.sleep(0.01)
    site.stall.set()
    for thread in threads:
        thread.join()
    assert [file.sha256 for file in found] == [SHA256, SHA256]
    assert site.requests == [("", len(CONTENT))]
    assert any("waiting for another process" in line for line in said)


def test_a_killed_download_leaves_only_a_resumable_part(site, cache_directory):
    site.stall = threading.Event()
    program = (
        "import sys; from simjax.porting import zoo; from simjax.porting.files import download; "
        "download.CHUNK = 10_000; "
        "zoo.fetch(sys.argv[1])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, site.url], env=os.environ, stdout=subprocess.DEVNULL
    )
    for _ in range(3000):
        if any(path.stat().st_size > 100_000 for path in cache_directory.glob("*.part")):
            break
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    site.stall.set()
    assert complete_files(cache_directory) == []
    (part,) = cache_directory.glob("*.part")
    have = part.stat().st_size
    assert have > 100_000
    site.requests.clear()
    assert fetch(site.url).sha256 == SHA256
    assert site.requests == [(f"bytes={have}-", len(CONTENT) - have)]
