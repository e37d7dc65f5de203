"""Name map of pytorch-fid's Inception-v3 weights."""

from collections.abc import Sequence

from simjax.porting.maps.rules import Rule, oihw_to_hwio, transposed

RULES: Sequence[Rule] = [
    Rule(r"AuxLogits\..*", None),  # the auxiliary head, only for training
    Rule(r".*\.num_batches_tracked", None),  # batch norm's counter, only for training
    Rule(r"(.*)\.conv\.weight", r"convs/\1/kernel", oihw_to_hwio),
    Rule(r"(.*)\.bn\.weight", r"convs/\1/scale"),
    Rule(r"(.*)\.bn\.bias", r"convs/\1/bias"),
    Rule(r"(.*)\.bn\.running_mean", r"convs/\1/mean"),
    Rule(r"(.*)\.bn\.running_var", r"convs/\1/variance"),
    Rule(r"fc\.weight", "fc/kernel", transposed),
    Rule(r"fc\.bias", "fc/bias"),
]
