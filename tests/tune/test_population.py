"""Population-based training: what is decided is on record, and weights pass from folder to folder."""

import re

import pytest

from proav import storage
from proav.runs.checkpoint import load_checkpoint
from proav.tune.population import _coded, _decided_rung, _decoded, _lend, _take_over, at_point, catch_up
from proav.tune.record import FINISHED, TrialRecord, read_record, write_record
from proav.tune.results import write_results
from proav.tune.rows import make_rows, point_at
from proav.tune.space import make_trial
from tests.tiny import save_tiny_mdsa, tiny_config
from tests.tune.test_results import DATA, rung

RATE, LOSS = "mdsa.train.learning_rate", "mdsa.loss.mel"
AXES = (
    f"tune.axes={{{RATE}: {{loguniform: [1.0e-4, 1.0e-2]}}, {LOSS}: [3, 6, 12]}}",
    "tune.search=random",
    "tune.num_trials=2",
    "tune.scheduler=pbt",
    "tune.grace_clips=8",
    "tune.max_clips=20",
)


def population(folder):
    config = tiny_config(f"run_dir={folder}", *AXES)
    points = [{RATE: 1e-3, LOSS: 6}, {RATE: 5e-3, LOSS: 12}]
    members = [make_trial(config, point, data_hash="a", member=number) for number, point in enumerate(points)]
    for number, member in enumerate(members):
        write_record(member, TrialRecord.begin(member, config.tune, number=number, data_hash="a"))
    return config, members


def test_rungs_are_equally_far_apart():
    assert tiny_config(*AXES).tune.rungs == (8, 16, 20)


def test_members_at_one_point_are_two(tmp_path):
    config, (first, _) = population(tmp_path)
    assert make_trial(config, first.point, data_hash="a", member=1).id != first.id


def test_settings_go_to_the_scheduler_and_come_back_within_their_ranges(tmp_path):
    tune = population(tmp_path)[0].tune
    assert _coded(tune, {RATE: 1e-3, LOSS: 6}) == {RATE: 1e-3, LOSS: 1}
    assert _decoded(tune, {"id": "t", RATE: 0.0123, LOSS: 2}) == {RATE: 1e-2, LOSS: 12}


def test_a_member_takes_over_weights_and_settings_in_its_own_folder(tmp_path):
    config, (giver, taker) = population(tmp_path)
    for member, seed in ((giver, "seed=0"), (taker, "seed=1")):
        save_tiny_mdsa(f"{member.config.run_folder}/mdsa/checkpoints", tiny_config(seed))
    _lend(giver, 8)
    point = {RATE: 1.2e-3, LOSS: 6}
    taken = {"budget": 8, "from": giver.id, "point": point, "before": taker.point, "settled": False}
    record = _take_over(
        taker, giver, read_record(taker.config.run_folder).replace(point=point, taken=[taken])
    )
    own = load_checkpoint(f"{taker.config.run_folder}/mdsa/checkpoints", kind="mdsa")
    assert own.config.seed == 0 and own.clips == 8
    assert record.taken[0]["settled"] and read_record(taker.config.run_folder) == record
    after = at_point(config, taker, record.point)
    assert (
        after.config.mdsa.train.learning_rate == 1.2e-3 and after.config.run_folder == taker.config.run_folder
    )


def test_only_the_last_rungs_are_kept_for_others(tmp_path):
    _, (giver, _) = population(tmp_path)
    save_tiny_mdsa(f"{giver.config.run_folder}/mdsa/checkpoints", tiny_config())
    for budget in (8, 16, 20):
        _lend(giver, budget)
    kept = {
        path.split("/lent/")[1].split("/")[0]
        for path in storage.list_files(f"{giver.config.run_folder}/lent")
    }
    assert kept == {"16", "20"}


def test_a_measurement_counts_for_the_settings_that_it_was_made_with(tmp_path):
    config, members = population(tmp_path)
    records = [read_record(member.config.run_folder) for member in members]
    before, after = records[1].point, {RATE: 1.2e-3, LOSS: 6}
    taken = {"budget": 8, "from": members[0].id, "point": after, "before": before, "settled": True}
    both = [rung(8, 10, 5), rung(16, 12, 4)]
    records = [
        records[0].replace(rungs=both),
        records[1].replace(rungs=both, point=after, taken=[taken]),
    ]
    rows = {row.trial: row for row in make_rows(config, records)}
    row = rows[members[1].id]
    assert row.point == after and [point_at(row, one) for one in row.rungs] == [before, after]
    assert all("point" not in one for one in rows[members[0].id].rungs)
    (cut,) = make_rows(
        config, [records[1].replace(rungs=both[:1])]
    )  # stopped before the new settings trained
    assert cut.point == before
    results = write_results(config, {record.id: record for record in records}, data=DATA, quiet=True)
    assert "change their settings during training" in results["importance"]["absent"]
    page = (tmp_path / "tune" / "report.html").read_text()
    assert "a marker shows those of its measurement" in page
    values = page[page.index(f"<h3>{LOSS}</h3>") :]
    counts = re.findall(r"<tr>.*?>(\d+)</t[dh]>.*?>(\d+)<", values[: values.index("</table>")])
    assert dict(counts) == {"3": "0", "6": "1", "12": "1"}


@pytest.mark.parametrize("ended", [False, True])
def test_a_rung_that_was_decided_for_one_is_decided_for_all(tmp_path, ended):
    _, members = population(tmp_path)
    folders = [member.config.run_folder for member in members]
    first = read_record(folders[0]).replace(passed=16, **({"status": FINISHED} if ended else {}))
    records = {members[0].id: first, members[1].id: read_record(folders[1]).replace(passed=8)}
    assert _decided_rung(records) == (8 if ended else 16)  # a member that has ended does not wait
    catch_up({members[1].id: members[1]}, records)
    assert read_record(folders[1]).passed == (8 if ended else 16)
