import numpy as np
import pyarrow as pa
import pytest

from proav.data.prepare.plan import (
    MAX_UNIT_BYTES,
    MAX_UNIT_SOURCES,
    TARGET_UNITS,
    check_settings,
    data_settings,
    make_plan,
    settle_plan,
)
from proav.data.prepare.unit import WorkUnit
from proav.data.sources.finding import find_sources, rows_of
from proav.errors import UserError
from tests.tiny import tiny_config


@pytest.fixture
def sources(tmp_path):
    """A table of 300 sources from a listing. Their files do not exist."""
    (tmp_path / "clips.csv").write_text(
        "path,labels\n" + "".join(f"{number:03d}.mp4,label {number % 7}\n" for number in range(300))
    )
    return find_sources(tiny_config(f"data.listing={tmp_path}/clips.csv"))


def repeated(sources, num_rows):
    return pa.concat_tables([sources] * -(-num_rows // len(sources))).slice(0, num_rows).combine_chunks()


def sizes(plan):
    return [plan.num_sources(name) for name in plan.names]


def test_units_depend_on_the_table_alone(sources):
    assert sizes(make_plan(sources.slice(0, 7))) == [1] * 7
    assert sizes(make_plan(repeated(sources, 200))) == [4] * 50
    assert sizes(make_plan(sources)) == [5] * 60
    large = TARGET_UNITS * MAX_UNIT_SOURCES + 1
    assert sizes(make_plan(repeated(sources, large))) == [MAX_UNIT_SOURCES] * TARGET_UNITS + [1]
    assert len(make_plan(sources.slice(0, 0))) == 0


def test_every_row_is_in_one_unit_in_order(sources):
    plan = make_plan(sources)
    assert [row for unit in plan.units() for row in unit.sources] == rows_of(sources)
    assert (
        plan.names == [f"{number:06d}" for number in range(60)]
        and [unit.name for unit in plan.units()] == plan.names
    )
    unit = plan.unit("000003")
    assert len(unit.sources) == 5 and WorkUnit.from_json(unit.to_json()) == unit


def test_a_unit_of_large_files_is_closed_early(sources):
    num_bytes = np.full(300, MAX_UNIT_BYTES // 4)
    num_bytes[10] = 2 * MAX_UNIT_BYTES  # larger than a unit: alone in its own
    num_bytes[20:] = 0
    table = sources.set_column(sources.column_names.index("num_bytes"), "num_bytes", pa.array(num_bytes))
    assert sizes(make_plan(table)) == [4, 4, 2, 1, 4, 4, 1 + 4, *[5] * 55, 1]


def test_a_plan_is_kept(sources, tmp_path):
    config = tiny_config(f"run_dir={tmp_path}")
    plan = settle_plan(config, f"{tmp_path}/data", sources)
    before = (tmp_path / "data" / "plan.parquet").read_bytes()
    again = settle_plan(
        tiny_config("data.num_workers=7", "seed=5", "data.videos=elsewhere"), f"{tmp_path}/data", sources
    )
    assert again.names == plan.names and list(again.units()) == list(plan.units())
    assert (tmp_path / "data" / "plan.parquet").read_bytes() == before


def test_what_another_version_or_no_plan_began_is_refused(sources, tmp_path):
    config, folder = tiny_config(), f"{tmp_path}/data"
    (tmp_path / "data" / "units").mkdir(parents=True)
    (tmp_path / "data" / "units" / "000000.json").write_text("{}")
    with pytest.raises(UserError, match="has finished units of work, but no plan.parquet.*delete"):
        settle_plan(config, folder, sources)
    settings = {key: value for key, value in data_settings(config).items() if key != "data.named_by_id"}
    with pytest.raises(
        UserError,
        match=r"another version of proav \(they differ in the settings data.named_by_id\).*run_dir=DIR",
    ):
        check_settings(config, folder, settings)


def test_other_settings_or_sources_are_refused_and_nothing_is_changed(sources, tmp_path):
    config, folder = tiny_config(), f"{tmp_path}/data"
    settle_plan(config, folder, sources)
    before = (tmp_path / "data" / "plan.parquet").read_bytes()
    with pytest.raises(UserError, match=r"data.fit=crop there, pad now.*run_dir=DIR"):
        settle_plan(tiny_config("data.fit=pad"), folder, sources)
    with pytest.raises(UserError, match=r"1 gone \(such as .*/299.mp4\); nothing was changed"):
        settle_plan(config, folder, sources.slice(0, 299))
    listing = tmp_path / "clips.csv"
    listing.write_text(
        listing.read_text().replace("000.mp4,label 0", "000.mp4,label 1").replace("001.mp4", "new.mp4")
    )
    changed = find_sources(tiny_config(f"data.listing={listing}"))
    with pytest.raises(
        UserError,
        match=r"1 new \(such as .*/new.mp4\), 1 gone \(such as .*/001.mp4\), "
        r"1 with another label.* \(such as .*/000.mp4\)",
    ):
        settle_plan(config, folder, changed)
    assert (tmp_path / "data" / "plan.parquet").read_bytes() == before
