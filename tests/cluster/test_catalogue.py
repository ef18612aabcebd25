from __future__ import annotations

import pytest

from argosy.cluster import catalogue


def test_ten_devices_with_plausible_figures() -> None:
    known = catalogue.devices()
    assert len(known) == 10
    for kind, device in known.items():
        assert device.kind == kind
        assert 1e14 < device.peaks["bfloat16"] < 1e16
        assert device.peaks["float32"] <= device.peaks["bfloat16"]
        assert 20e9 < device.memory < 300e9
        assert 5e11 < device.memory_bandwidth < 1e13
        assert device.source


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("NVIDIA H200", "h200-sxm"), ("NVIDIA H100 80GB HBM3", "h100-sxm"), ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb-sxm"), ("NVIDIA A100-SXM4-40GB", "a100-40gb-sxm"), ("NVIDIA B200", "b200-sxm"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"), ("AMD Instinct MI300X", "mi300x"), ("NVIDIA L40S", "l40s"),
        ("NVIDIA T4", None),
    ],
)  # fmt: skip
def test_what_a_driver_calls_them(name: str, kind: str | None) -> None:
    found = catalogue.match(name)
    assert (found.kind if found else None) == kind


def test_unknown_devices_name_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean h100-sxm"):
        catalogue.device("h100-smx")
