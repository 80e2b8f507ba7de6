"""Which samples and pairs count, and short runs of benchmarks/compare.py and `pyllm bench --compare`."""

from __future__ import annotations

import importlib
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from tinygguf import Q4_0, tiny_llama

import pyllm
from pyllm import cli
from pyllm.measuring import bench, comparing, probes
from pyllm.measuring.comparing import Sample
from pyllm.measuring.peers import Setup, open_engine
from pyllm.measuring.probes import Probe

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
NEAR, FAR, UNKNOWN = Probe(45.0, 50.0), Probe(260.0, 90.0), Probe(None, 30.0)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("compare")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time for the machine to settle: what is measured is not believed anyway."""
    monkeypatch.setattr(comparing, "SETTLING", 0.0)
    monkeypatch.setattr(comparing, "LOOK", 0.01)


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(tiny_llama(tmp_path / "tiny.gguf", Q4_0))


def samples(
    engine: str, rates: list[float], idle: list[float], probe: list[Probe] | None = None, threads: int = 2
) -> list[Sample]:
    """One sample per half round, in the order in which a round's second half runs: backwards."""
    rows = [
        Sample(engine, "decode 128", threads, i, rate, rate, (share, 1.0), (at, at))
        for i, (rate, share, at) in enumerate(zip(rates, idle, probe or [NEAR] * len(rates), strict=True))
    ]
    return rows[::-1]


# ---- which samples count ---------------------------------------------------------------------------------------------


def test_where_threads_stand_is_told_by_the_time_of_a_barrier() -> None:
    placements = [Probe(ns, 1.0).placement for ns in (21.0, 100.0, 120.0, 150.0, 330.0, None)]
    assert placements == ["near", "near", None, "far", "far", None]


def test_a_sample_stands_where_the_machine_was_quiet_and_its_threads_stayed() -> None:
    def standing(threads: int, idle: tuple[float | None, float | None], *at: Probe) -> str | None:
        return Sample("a", "t", threads, 0, 1.0, 1.0, idle, (at[0], at[-1])).standing

    assert standing(2, (0.94, 1.0), NEAR) == "near"
    assert standing(2, (1.0, 1.0), FAR) == "far"
    assert standing(2, (1.0, 1.0), NEAR, FAR) is None
    assert standing(2, (1.0, 1.0), UNKNOWN) is None
    assert standing(2, (1.0, 0.93), NEAR) is None
    assert standing(2, (1.0, None), NEAR) is None  # a system that tells nothing is not called quiet
    assert standing(1, (1.0, 1.0), UNKNOWN) == "one"  # one thread is nowhere in particular


def test_only_standing_samples_count_where_there_are_enough() -> None:
    ours = samples("a", [100, 50, 120, 90, 80], [0.99, 0.3, 0.94, 0.95, 1.0])
    theirs = samples("b", [50, 50, 100, 30, 20], [0.99, 1.0, 1.0, 0.2, 1.0])
    counted, condition = comparing.chosen(ours)
    assert (sorted(s.tokens_per_second for s in counted), condition) == ([80, 90, 100, 120], "near")
    # in half rounds 1 and 3 one of the two was disturbed
    assert comparing.ratios(ours, theirs) == ([2.0, 1.2, 4.0], True)


def test_pairs_in_different_placements_are_left_out() -> None:
    ours = samples("a", [100, 90, 80, 70], [1.0] * 4, [NEAR, FAR, NEAR, NEAR])
    theirs = samples("b", [50, 45, 10, 35], [1.0] * 4, [NEAR, FAR, FAR, NEAR])
    assert comparing.ratios(ours, theirs) == ([2.0, 2.0, 2.0], True)
    counted, condition = comparing.chosen(ours)  # medians are of one placement: the commoner
    assert (sorted(s.tokens_per_second for s in counted), condition) == ([70, 80, 100], "near")
    alone = samples("c", [50, 45, 40, 35], [1.0] * 4, threads=1)
    assert comparing.ratios(ours, alone) == ([2.0, 2.0, 2.0, 2.0], True)


def test_all_samples_count_where_too_few_stand() -> None:
    ours = samples("a", [100, 50, 30], [0.99, 0.3, 0.94])
    theirs = samples("b", [50, 50, 10], [0.99, 1.0, 1.0])
    counted, condition = comparing.chosen(ours)
    assert (len(counted), condition) == (3, "busy")
    assert comparing.ratios(ours, theirs) == ([2.0, 1.0, 3.0], False)


def test_the_interval_is_of_the_median() -> None:
    assert comparing.interval([2.0] * 10) == (2.0, 2.0)
    low, high = comparing.interval([1.0, 1.1, 1.2, 1.3, 9.0])
    assert 1.0 <= low < 1.2 < high <= 9.0


def test_a_summary_tells_bandwidth_of_decoding_and_work_of_a_prefill() -> None:
    costs = {"weight_bytes": 10**9, "position_bytes": 10**6, "layer_macs": 2 * 10**9}
    rates = samples("a", [10, 20, 30], [1.0] * 3)
    trial = comparing.decode(99, depth=200)
    row = comparing.summarise(rates, trial, {"b": samples("b", [10, 10, 10], [1.0] * 3)}, costs)
    assert (row["median"], row["low"], row["high"], row["counted"]) == (20, 10, 30, 3)
    assert row["gb_per_second"] == pytest.approx(20 * 1.25)  # 250 positions are read on average
    assert row["share_of_ceiling"] == pytest.approx(statistics.median([10, 20, 30]) * 1.25 / 50)
    assert row["ratios"]["b"] == {"median": 2.0, "low": 1.0, "high": 3.0, "pairs": 3, "stands": True}
    row = comparing.summarise(rates, comparing.prefill(8), {}, costs)
    assert row["gmac_per_second"] == pytest.approx(40)
    assert "share_of_ceiling" not in row


def test_one_thread_has_no_placement_and_every_thread_reads() -> None:
    found = probes.probe(probes.buffer_of(1 << 20), 1)
    assert found.barrier_ns is None
    assert found.gb_per_second > 0


# ---- engines in processes of their own -------------------------------------------------------------------------------


def test_engines_run_there_and_back(tiny: str, hasty: None) -> None:
    names = ["pyllm:high", "pyllm:fast@1"]
    with comparing.workers(open_engine, names, Setup(Path(tiny), 2, 24)) as opened:
        trial = comparing.decode(4, depth=8)
        able, failures = comparing.warm_up(opened, trial)
        found = comparing.measure(list(able), trial, 1, probes.buffer_of(1 << 20))
        assert not failures
        assert set(opened[0].memory()) <= {"all", "anonymous"}
    order = [(s.engine, s.half_round, s.threads) for s in found]
    assert order == [(names[0], 0, 2), (names[1], 0, 1), (names[1], 1, 1), (names[0], 1, 2)]
    assert all(s.tokens_per_second > 0 and s.tokens_per_cpu_second > 0 for s in found)


def test_a_failure_is_told_and_the_engine_lives_on(tiny: str, hasty: None) -> None:
    with comparing.workers(open_engine, ["pyllm:high"], Setup(Path(tiny), 1, 8)) as opened:
        able, failures = comparing.warm_up(opened, comparing.prefill(9))
        assert not able
        assert failures["pyllm:high"].startswith("ContextLengthError: ")
        able, failures = comparing.warm_up(opened, comparing.prefill(8))
        assert list(able) == opened


def test_an_engine_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF nonsense")
    setup, failures = Setup(tmp_path / "no.gguf", 1, 8), {}
    with comparing.workers(open_engine, ["pyllm:high"], setup, failures) as opened:
        assert opened == []
    assert failures["pyllm:high"].startswith("UnsupportedModelError: ")
    with (
        pytest.raises(ChildProcessError, match=r"pyllm:high: UnsupportedModelError: .*no\.gguf"),
        comparing.workers(open_engine, ["pyllm:high"], setup),
    ):
        raise AssertionError("unreachable")


# ---- the commands ----------------------------------------------------------------------------------------------------


def test_compare(compare: ModuleType, tiny: str, tmp_path: Path, hasty: None, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "record.json"
    tests = ("prefill", "decode", "depth", "batch", "text", "cold", "memory", "fidelity")
    arguments = [tiny, "--engine", "pyllm:high", "--peer", "pyllm:fast", "--peer", "openvino:int8", "--json", str(out)]
    arguments += ["--threads", "1", "--rounds", "1", "--prompt", "8", "--generate", "4", "--depth", "8"]
    for test in tests:
        arguments += ["--test", test]
    compare.main(arguments)
    record = json.loads(out.read_text())
    found = [(row["test"], row["engine"]) for row in record["results"]]
    names = ("prefill 8", "decode 4", "decode 4 at 8", "batch 8 × 4", "text 4", "cold start")
    assert found == [(test, engine) for test in names for engine in ("pyllm:high", "pyllm:fast")]
    assert len(record["samples"]) == 4 * len(names)
    assert all(0 < row["low"] <= row["median"] <= row["high"] for row in record["results"])
    assert [row["unit"] for row in record["results"] if "unit" in row] == ["s", "s"]
    assert "pyllm:fast" in record["results"][0]["ratios"]
    assert [row["file"] for row in record["memory"]] == [Path(tiny).stat().st_size] * 2
    (failure,) = record["failures"]  # it is not installed here, or lacks its converted model
    assert (failure["engine"], failure["test"]) == ("openvino:int8", "opening")
    shown = capsys.readouterr().out
    assert shown.count("| pyllm:high |") == len(names) + 1
    assert f"openvino:int8, opening: {failure['reason']}" in shown


def test_the_table_names_the_peer_that_is_hardest_to_beat(compare: ModuleType) -> None:
    def found(median: float, stands: bool = True) -> dict[str, float | bool]:
        return {"median": median, "low": 1.0, "high": 3.0, "pairs": 4, "stands": stands}

    assert compare.against_best({"a": found(2.0), "b": found(1.5)}) == "1.50 (1.00 to 3.00) b"
    assert compare.against_best({"a": found(1.25, stands=False), "b": found(1.5)}) == "[1.25 (1.00 to 3.00)] a"
    assert compare.against_best({}) == ""


def test_compare_leaves_out_what_is_too_long_for_the_model(compare: ModuleType, tiny: str) -> None:
    plan = compare.plan_of(compare.parse([tiny]))
    room = plan.setup(1).context_length
    assert room == plan.prompt < 512
    assert "depth" not in plan.tests
    assert [trial.method for trial in plan.trials()] == ["prefill", "decode", "batch", "text"]


def test_compare_ends_where_pyllm_itself_fails(compare: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF nonsense")
    with pytest.raises(SystemExit, match=r"no\.gguf"):
        compare.main([str(tmp_path / "no.gguf")])


def test_company(compare: ModuleType, tiny: str, hasty: None) -> None:
    company = importlib.import_module("company")
    setup, trial = Setup(Path(tiny), 2, 8), comparing.decode(8)
    rows, failures = company.measure(open_engine, ["pyllm:high", "pyllm:high@1", "pyllm:slow"], setup, trial, 1, 0.0)
    assert list(failures) == ["pyllm:slow"]
    (row,) = rows
    situations = ("alone", "one_thread", "beside_loop", "one_thread_beside_loop", "two_together")
    assert all(row[situation] > 0 for situation in situations)
    assert 0 < row["slower_of_two"] <= row["two_together"] / 2
    assert company.table(rows).count("| pyllm:high | 2 |") == 1


def test_bench_compare(tiny: str, hasty: None, capsys: pytest.CaptureFixture) -> None:
    arguments = ["bench", tiny, "--peer", "pyllm:fast", "--prompt", "8", "--generate", "4", "--repeats", "1"]
    assert cli.main([*arguments, "--threads", "1", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["peers"] == ["pyllm:fast"]
    assert [row["test"] for row in record["results"]] == ["prefill 8"] * 2 + ["decode 4"] * 2
    assert record["results"][0]["ratios"]["pyllm:fast"]["pairs"] == 2
    with pyllm.load(tiny) as high, pyllm.load(tiny, precision="fast") as fast:
        ids = high.tokenizer.encode(bench.PROSE)[: high.context_length]
        same = (high.logits(ids).argmax(-1) == fast.logits(ids).argmax(-1)).mean()
    assert record["agreement"] == {"pyllm:fast": same}
    assert cli.main([*arguments, "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "× pyllm:fast" in shown
    assert f"pyllm:fast chooses as pyllm:high at {same:.1%} of a text's positions" in shown


def test_bench_compare_says_which_engine_cannot_be_had(tiny: str, capsys: pytest.CaptureFixture) -> None:
    assert cli.main(["bench", tiny, "--peer", "mine", "--prompt", "8", "--generate", "4"]) == 1
    assert "mine: ValueError: 'mine' is no engine; there are pyllm:high, " in capsys.readouterr().err
