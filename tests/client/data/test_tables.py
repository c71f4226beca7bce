"""Tables: columns become inputs by a file that all sites share and no row went into."""

from pathlib import Path

import numpy as np
import pytest
import torch

from client.data.columns import Category, Columns, Number, load, merge, to_give_away, to_toml
from client.data.datasets import load as load_data
from client.data.source import parse, table_reading
from client.data.splits import Data
from client.data.tables import own_columns, read_rows
from client.errors import DataError

HEART = """\
age,sex,pain,patient,sick
40,m,1,7,no
50,f,2,7,yes
60,m,1,8,no
50,,2,9,yes
"""


def write(path: Path, text: str = HEART) -> Path:
    path.write_text(text)
    return path


def read(path: Path, query: str = "label=sick&id=patient&drop=pain") -> Data:
    return load_data(f"table:{path}?{query}")


def give_away(path: Path, query: str) -> tuple[Columns, list[str]]:
    reading = table_reading(parse(f"table:{path}?{query}"))
    rows = read_rows(path, reading)
    columns = own_columns(rows, path, reading)
    return to_give_away(columns, rows.training(), where=str(path))


def said(data: Data, words: str) -> bool:
    return any(words in note for note in data.notes)


# ---- reading -------------------------------------------------------------------------------------


def test_a_table_becomes_standardised_numbers_and_ones_for_categories(tmp_path: Path) -> None:
    data = read(write(tmp_path / "heart.csv"))
    # Ages 40, 50, 60, 50: mean 50, variance (100 + 0 + 100 + 0) / 4 = 50. Then f, m.
    far = 10 / 50**0.5
    expected = torch.tensor([[-far, 0, 1], [0, 1, 0], [far, 0, 1], [0, 0, 0]])
    torch.testing.assert_close(data.train.inputs, expected)
    assert data.train.inputs.dtype == torch.float32
    assert data.train.labels.tolist() == [0, 1, 0, 1]
    assert data.train.ids.tolist() == [7, 7, 8, 9]
    assert (data.class_names, data.mean, data.std) == (("no", "yes"), (), ())
    assert len(data.test) == 0
    assert said(data, "4 rows of 2 columns became 3 inputs")
    assert said(data, "1 cells are missing")
    assert said(data, "scaled by this table's own rows; sites with a table each need one columns")


def test_a_column_of_sites_is_no_input_and_leaves_the_test_part_to_each_class(
    tmp_path: Path,
) -> None:
    text = "age,site,sick\n" + "".join(f"{40 + i},{'wn'[i % 2]},{i // 4 % 2}\n" for i in range(16))
    data = read(write(tmp_path / "h.csv", text), "label=sick&site=site&test=0.25")
    assert data.train.inputs.shape == (12, 1)
    assert len(data.test) == 4  # two of each class: not whole sites
    # In natural order of the names: n is 0, w is 1.
    assert data.train.ids.tolist()[:3] == [1, 0, 1]
    assert said(data, "rows of 2 sites: 0 is n, 1 is w")
    with pytest.raises(DataError, match="each row must name its site, got none in row 2"):
        read(write(tmp_path / "i.csv", text.replace("41,n", "41,")), "label=sick&site=site")


def test_numbers_may_stand_for_categories(tmp_path: Path) -> None:
    data = read(write(tmp_path / "h.csv"), "label=sick&id=patient&drop=age,sex&categories=pain")
    assert data.train.inputs.tolist() == [[1, 0], [0, 1], [1, 0], [0, 1]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_other_delimiters_and_a_byte_order_mark_are_understood(
    tmp_path: Path, delimiter: str
) -> None:
    path = write(tmp_path / "h.csv", "\ufeff" + HEART.replace(",", delimiter))
    assert read(path).train.inputs.shape == (4, 3)


def test_parquet_gives_the_same_as_csv(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table(
        {
            "age": [40, 50, 60, 50],
            "sex": ["m", "f", "m", None],
            "pain": [1.0, 2.0, 1.0, 2.0],
            "patient": [7, 7, 8, 9],
            "sick": ["no", "yes", "no", "yes"],
        }
    )
    parquet.write_table(table, tmp_path / "h.parquet")
    one, other = read(tmp_path / "h.parquet"), read(write(tmp_path / "h.csv"))
    assert torch.equal(one.train.inputs, other.train.inputs)
    assert torch.equal(one.train.ids, other.train.ids)


def test_ids_that_are_texts_become_hashes(tmp_path: Path) -> None:
    ids = read(write(tmp_path / "h.csv", HEART.replace(",7,", ",x7,"))).train.ids.tolist()
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_a_share_of_each_class_is_the_test_part(tmp_path: Path) -> None:
    rows = "".join(f"{i},{'ab'[i % 2]}\n" for i in range(20))
    data = read(write(tmp_path / "h.csv", "x,y\n" + rows), "label=y&test=0.2")
    # Every fifth row of a class: of a 8 and 18, of b 9 and 19.
    assert (len(data.train), len(data.test)) == (16, 4)
    assert data.test.labels.tolist() == [0, 1, 0, 1]
    kept = [x for x in range(20) if x not in (8, 9, 18, 19)]
    mean, std = np.mean(kept), np.std(kept)  # of the training rows alone
    assert data.test.inputs[:, 0].tolist() == pytest.approx(
        [(x - mean) / std for x in (8, 9, 18, 19)]
    )


def test_rows_of_one_patient_stay_together(tmp_path: Path) -> None:
    data = read(write(tmp_path / "h.csv"), "label=sick&id=patient&test=0.5")
    assert data.train.ids.tolist() == [7, 7, 9]
    assert data.test.ids.tolist() == [8]


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        (HEART, "label=ill", "must have a column 'ill', got age, sex, pain, patient, sick"),
        (HEART, "label=sick&drop=age,weight", "must have a column 'weight'"),
        (HEART, "label=sick&drop=age,sex,pain,patient", "must have a column beside age, pain,"),
        (HEART.replace("50,f,2,7,yes", "50,f"), "label=sick", "line 3 must have 5 cells .* got 2"),
        (
            HEART.replace("8,no", "8,"),
            "label=sick",
            "must say every row's class, got none in row 3",
        ),
        ("x,y\n1,0.5\n2,1.5\n", "label=y", r"not whole; to learn a quantity, write a task of your"),
        ("x,y\n,a\n?,b\n", "label=y", "column 'x' must hold something, got only missing cells"),
        ("x,x\n1,a\n", "label=x", "columns must have names that differ, got x, x"),
        ("x,y\n", "label=y", "must hold at least one row, got none"),
        ("x,y\n1,a\n2,a\n", "label=y", "must hold at least 2 classes, got 1"),
        (
            "x,y\n" + "".join(f"name {i},{i % 2}\n" for i in range(101)),
            "label=y",
            "must hold numbers, or at most 100 categories, got 101, such as 'name 0'; leave it out",
        ),
    ],
)
def test_what_is_no_table_of_classes_is_refused(
    tmp_path: Path, text: str, query: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(write(tmp_path / "h.csv", text), query)


def test_a_file_that_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="table must exist"):
        read(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"must be a table by its name \(\.csv, "):
        read(write(tmp_path / "h.xls"))
    with pytest.raises(DataError, match="must be a complete Parquet file"):
        read(write(tmp_path / "h.parquet"))
    (tmp_path / "latin.csv").write_bytes("größe,y\n1,a\n".encode("latin-1"))
    with pytest.raises(DataError, match="must be a CSV file in UTF-8"):
        read(tmp_path / "latin.csv")


# ---- the columns file ----------------------------------------------------------------------------


def many(path: Path, ages: list[int], sexes: str, sick: str) -> Path:
    lines = [f"{a},{s},{y}" for a, s, y in zip(ages, sexes, sick, strict=True)]
    return write(path, "\n".join(["age,sex,sick", *lines]) + "\n")


A = ([10, 20, 30, 40, 50, 60], "ffffff", "nynyny")
B = ([70, 80, 90, 100, 110, 120], "mmmmmf", "nnnnny")


def test_merged_columns_are_those_of_all_rows_together(tmp_path: Path) -> None:
    files = {n: many(tmp_path / f"{n}.csv", *rows) for n, rows in (("a", A), ("b", B))}
    merged = merge({n: give_away(path, "label=sick")[0] for n, path in files.items()})
    # 10 + ... + 120 = 780, mean 65; squares 100 * (1 + 4 + ... + 144) = 65000.
    age = merged.inputs["age"]
    assert isinstance(age, Number)
    assert (age.count, age.total, age.squares, age.mean) == (12, 780.0, 65000.0, 65.0)
    assert age.std == pytest.approx((65000 / 12 - 65**2) ** 0.5, rel=1e-15)
    assert merged.inputs["sex"] == Category(("f", "m"))
    assert (merged.rows, merged.classes) == (12, ("n", "y"))


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    found = [give_away(many(tmp_path / "a.csv", *rows), "label=sick")[0] for rows in (A, B)]
    assert merge(dict(zip("ab", found, strict=True))) == merge(
        dict(zip("ba", reversed(found), strict=True))
    )


def test_a_large_mean_does_not_eat_the_deviation() -> None:
    # 10^6 + (0, 1): mean 1000000.5, deviation 0.5.
    squares = float(10**12 + (10**6 + 1) ** 2)
    assert Number.of(2, 2e6 + 1, squares) == Number(1000000.5, 0.5, 2, 2e6 + 1, squares)


def test_all_sites_read_the_same_input_from_the_same_cell(tmp_path: Path) -> None:
    paths = [many(tmp_path / f"{n}.csv", *rows) for n, rows in (("a", A), ("b", B))]
    merged = merge({str(p): give_away(p, "label=sick")[0] for p in paths})
    file = tmp_path / "all.toml"
    file.write_text(to_toml(merged))
    assert load(file) == merged
    a, b = (read(p, f"label=sick&columns={file}") for p in paths)
    std = (65000 / 12 - 65**2) ** 0.5
    assert a.train.inputs[0].tolist() == pytest.approx([(10 - 65) / std, 1, 0])
    assert b.train.inputs[0].tolist() == pytest.approx([(70 - 65) / std, 0, 1])
    assert a.class_names == b.class_names == ("n", "y")
    assert not said(a, "own rows")


def test_what_few_rows_stand_behind_is_not_given_away(tmp_path: Path) -> None:
    columns, notes = give_away(many(tmp_path / "b.csv", *B), "label=sick")
    assert columns.inputs["sex"] == Category(("m",))  # one row is f
    assert notes == ["1 categories of 'sex' have fewer than 5 rows each, and were left out"]
    with pytest.raises(DataError, match=r"must have at least 5 rows for sums of them .* got 4"):
        give_away(write(tmp_path / "h.csv"), "label=sick")
    rare = many(tmp_path / "c.csv", [0, 0, 0, 0, 0, 1], "ffffff", "nynyny")
    with pytest.raises(
        DataError, match=r"'age' must have at least 5 rows beside its commonest .* 1"
    ):
        give_away(rare, "label=sick")


def test_a_category_that_the_file_lacks_is_none_of_them(tmp_path: Path) -> None:
    path = many(tmp_path / "b.csv", *B)
    (tmp_path / "c.toml").write_text(to_toml(give_away(path, "label=sick")[0]))
    data = read(path, f"label=sick&columns={tmp_path / 'c.toml'}")
    assert data.train.inputs[-1, 1:].tolist() == [0]
    assert said(data, "1 cells hold categories that the columns file lacks")


def test_files_that_do_not_go_together_are_not_merged(tmp_path: Path) -> None:
    a = give_away(many(tmp_path / "a.csv", *A), "label=sick")[0]
    b = give_away(many(tmp_path / "b.csv", *B), "label=sick&drop=sex")[0]
    c = give_away(many(tmp_path / "c.csv", *B), "label=sex&drop=sick")[0]
    with pytest.raises(
        DataError, match="b: column 'sex' must be categories as in a, got not there"
    ):
        merge({"a": a, "b": b})
    with pytest.raises(DataError, match="c: label must be 'sick' as in a, got 'sex'"):
        merge({"a": a, "c": c})
    with pytest.raises(DataError, match="a and d must be of different sites, got the same rows"):
        merge({"a": a, "d": a})


def test_a_table_that_does_not_fit_its_columns_file_is_refused(tmp_path: Path) -> None:
    path = many(tmp_path / "a.csv", *A)
    file = tmp_path / "c.toml"
    file.write_text(to_toml(give_away(path, "label=sick")[0]))
    query = f"label=sick&columns={file}"
    with pytest.raises(DataError, match=r"must have the columns of .*, got no age"):
        read(write(tmp_path / "b.csv", "sex,sick\nf,n\n"), query)
    with pytest.raises(DataError, match="sick must be one of n, y, got 'maybe'"):
        read(write(tmp_path / "b.csv", "age,sex,sick\n1,f,maybe\n"), query)
    with pytest.raises(DataError, match="column 'age' must hold numbers, got 'old' in row 1"):
        read(write(tmp_path / "b.csv", "age,sex,sick\nold,f,n\n"), query)
    with pytest.raises(DataError, match="label must be 'sex' as named, got 'sick'"):
        read(path, query.replace("label=sick", "label=sex"))
    data = read(write(tmp_path / "b.csv", "age,sex,sick,more\n1,f,n,2\n"), query)
    assert said(data, "columns that the columns file lacks were passed over: more")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = [", "must be a columns file in TOML"),
        ("format = 2", "format must be 1, got 2"),
        ("format = 1", "must say label, classes, rows and .* got a bad 'columns'"),
        (
            'format = 1\nlabel = "y"\nclasses = ["a", "b"]\nrows = 9\n'
            '[columns.x]\nkind = "number"\nmean = 1\nstd = 0\n',
            "got a bad mean and std, 1.0 and 0.0",
        ),
    ],
)
def test_a_bad_columns_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load(path)


def test_names_with_quotes_and_other_letters_survive(tmp_path: Path) -> None:
    columns = Columns('the "label"', ("ä\\", "b\n日"), 9, {'a.b "c"': Category(("\x7f", "'"))})
    (tmp_path / "c.toml").write_text(to_toml(columns).replace("b\\n", "b"), encoding="utf-8")
    found = load(tmp_path / "c.toml")
    assert (found.label, found.classes) == ('the "label"', ("ä\\", "b日"))
    assert found.inputs == columns.inputs
