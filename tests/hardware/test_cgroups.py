"""The CPU quota of made machines: each is a folder with the files of /proc and /sys that a real one would show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cgd_deploy.hardware.cgroups import cpu_quota

V2 = "30 23 0:26 {top} {folder} rw,nosuid shared:4 - cgroup2 cgroup rw,nsdelegate"
V1 = "33 32 0:28 {top} {folder} rw,nosuid shared:9 - cgroup cgroup rw,{controllers}"
NO_QUOTA_1 = ("-1", "100000")


@pytest.fixture
def machine(tmp_path: Path) -> Callable[..., float | None]:
    """The quota of a process with these lines in /proc/self/cgroup and mountinfo, and these quotas in folders."""

    def quota(cgroup: str, mounts: list[str], **quotas_of: dict[str, object]) -> float | None:
        (tmp_path / "proc/self").mkdir(parents=True)
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        (tmp_path / "proc/self/mountinfo").write_text("".join(f"{mount}\n" for mount in mounts))
        for folder, quota in quotas_of.get("v2", {}).items():
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "cpu.max").write_text(f"{quota}\n")
        for folder, (quota, period) in quotas_of.get("v1", {}).items():
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
            (tmp_path / folder / "cpu.cfs_period_us").write_text(f"{period}\n")
        return cpu_quota(tmp_path)

    return quota


def v2(top: str = "/", folder: str = "/sys/fs/cgroup") -> str:
    return V2.format(top=top, folder=folder)


def v1(top: str = "/", folder: str = "/sys/fs/cgroup/cpu,cpuacct", controllers: str = "cpu,cpuacct") -> str:
    return V1.format(top=top, folder=folder, controllers=controllers)


SYS = "sys/fs/cgroup"
SERVICE = f"{SYS}/system.slice/cgd.service"
CPU = f"{SYS}/cpu,cpuacct"


def test_the_quota_of_a_systemd_service(machine):
    slices = {f"{SYS}/system.slice": "max 100000", SERVICE: "200000 100000"}
    assert machine("0::/system.slice/cgd.service\n", [v2()], v2=slices) == 2


def test_the_quota_of_a_slice_counts_for_the_services_in_it(machine):
    slices = {f"{SYS}/system.slice": "150000 100000", SERVICE: "400000 100000", f"{SYS}/other.slice": "1000 100000"}
    assert machine("0::/system.slice/cgd.service\n", [v2()], v2=slices) == 1.5


def test_a_pod_that_sees_the_cgroups_of_its_host(machine):
    pod = f"{SYS}/kubepods.slice/pod1"
    limits = {pod: "300000 100000", f"{pod}/container": "max 100000"}
    assert machine("0::/kubepods.slice/pod1/container\n", [v2()], v2=limits) == 3


def test_a_container_of_which_its_own_cgroup_is_mounted(machine):
    assert machine("0::/\n", [v2()], v2={SYS: "50000 100000"}) == 0.5


def test_a_container_without_a_cgroup_namespace(machine):
    mounts = [v2(top="/docker/1f")]
    assert machine("0::/docker/1f/worker\n", mounts, v2={SYS: "400000 100000", f"{SYS}/worker": "250000 100000"}) == 2.5


def test_v1_below_a_shared_mount(machine):
    quotas = {CPU: NO_QUOTA_1, f"{CPU}/docker": NO_QUOTA_1, f"{CPU}/docker/1f": ("150000", "50000")}
    lines = "11:memory:/elsewhere\n4:cpu,cpuacct:/docker/1f\n1:name=systemd:/docker/1f\n"
    assert machine(lines, [v1(), v1(folder=f"/{SYS}/memory", controllers="memory")], v1=quotas) == 3


def test_v1_of_a_container_whose_own_cgroup_is_mounted(machine):
    assert machine("4:cpuacct,cpu:/docker/1f\n", [v1(top="/docker/1f")], v1={CPU: ("200000", "100000")}) == 2


def test_both_versions_at_once_give_the_smaller_quota(machine):
    """systemd's hybrid mode mounts v2 for itself and leaves the cpu controller with v1."""
    mounts = [v2(folder=f"/{SYS}/unified"), v1()]
    lines = "4:cpu,cpuacct:/a\n0::/a\n"
    assert machine(lines, mounts, v2={f"{SYS}/unified/a": "300000 100000"}, v1={f"{CPU}/a": ("200000", "100000")}) == 2


@pytest.mark.parametrize("name", ["my job", "back\\slash", "käse", "a (deleted)"])
def test_names_with_unusual_characters(machine, name):
    escaped = name.replace("\\", "\\134").replace(" ", "\\040")
    mounts = [v2(folder=f"/{SYS}/{escaped}")]
    assert machine(f"0::/{name}\n", mounts, v2={f"{SYS}/{name}/{name}": "100000 100000"}) == 1


def test_a_cgroup_that_is_gone_leaves_those_around_it(machine):
    assert machine("0::/a/b (deleted)\n", [v2()], v2={f"{SYS}/a": "100000 100000"}) == 1


@pytest.mark.parametrize("path", ["/../..", "/../outside", "/elsewhere"])
def test_a_cgroup_that_the_mount_does_not_show(machine, path):
    """The mounted cgroup is all that can be read; nothing outside of the mount is."""
    quotas = {SYS: "200000 100000", "sys/fs": "100 100000", "sys/fs/outside": "100 100000"}
    assert machine(f"0::{path}\n", [v2(top="/" if ".." in path else "/docker")], v2=quotas) == 2


def test_a_mount_from_outside_of_the_namespace(machine):
    assert machine("0::/../a\n", [v2(top="/..")], v2={f"{SYS}/a": "200000 100000"}) == 2


@pytest.mark.parametrize("text", ["max 100000", "max", "", "-1 100000", "0 100000", "1 0", "one two", "1 2 3"])
def test_files_that_name_no_quota(machine, text):
    assert machine("0::/\n", [v2()], v2={SYS: text}) is None


@pytest.mark.parametrize("quota", [NO_QUOTA_1, ("0", "100000"), ("100000", "0"), ("", ""), ("x", "100000")])
def test_files_of_v1_that_name_no_quota(machine, quota):
    assert machine("1:cpu:/\n", [v1(controllers="cpu")], v1={CPU: quota}) is None


def test_a_broken_file_does_not_hide_the_quota_around_it(machine):
    assert machine("0::/a\n", [v2()], v2={f"{SYS}/a": "?", SYS: "200000 100000"}) == 2


@pytest.mark.parametrize(
    ("lines", "mount"),
    [("", v2()), ("nothing\n0:\n:::\n", v2()), ("0::/\n", ""), ("0::/\n", "30 23 - cgroup2"), ("1:cpu:/\n", v2())],
)
def test_proc_without_what_is_needed(machine, lines, mount):
    assert machine(lines, [mount], v2={SYS: "200000 100000"}) is None


def test_a_system_without_proc(tmp_path):
    assert cpu_quota(tmp_path) is None


def test_this_machine():
    quota = cpu_quota()
    assert quota is None or quota > 0
