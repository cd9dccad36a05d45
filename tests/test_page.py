import base64
import collections
import dataclasses
import hashlib
import html.parser
import re
import shutil

import imagecodecs
import numpy as np
import pytest

from deformgan import drawing, gallery, page

HOSTILE = """<script>alert(1)</script>"'&</title></pre><img src=x onerror=alert(2)>"""
VOID = {"meta", "link", "img", "input", "br", "col"}
NONE = page.Pictures(*[np.zeros((0, 8, 8, 1), np.uint8)] * 3, np.zeros((0, 8, 8, 2), np.float32))


class Parsed(html.parser.HTMLParser):
    """Elements as (tag, attributes, text inside); fails on what is not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {[e[0] for e in self.open]}"

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in VOID:
            self.open.append(self.elements[-1])

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def all(self, tag, cls=None):
        return [
            e
            for e in self.elements
            if e[0] == tag and (cls is None or cls in e[1].get("class", "").split())
        ]

    @property
    def text(self):
        return " ".join(self.all("body")[0][2].split())


def pictures(count=3, size=32, channels=1, seed=0):
    rng = np.random.default_rng(seed)
    real, generated, nearest = rng.integers(0, 256, (3, count, size, size, channels), np.uint8)
    return page.Pictures(real, generated, nearest, np.zeros((count, size, size, 2), np.float32))


def records(count=200):
    rng = np.random.default_rng(0)
    names = [
        f"{net}/{what}" for net in ("disc", "gen") for what in ("adversarial", "gradient_norm")
    ]
    names += ["disc/accuracy_real", "disc/accuracy_fake", "diversity", "folded", "steps_per_second"]
    lines = [{"step": 100 * (i + 1)} | dict.fromkeys(names, rng.uniform()) for i in range(count)]
    lines[-1]["evaluate/kid_random"] = 0.25
    return lines


def evaluation():
    floor = {"accuracy": 0.463, "interval": [0.401, 0.532], "p_value": 0.71}
    test = {"accuracy": 0.971, "interval": [0.933, 0.992], "p_value": 0.001, "detectable": 0.584}
    test |= {"smallest_p_value": 0.0011, "n": 1240, "blocks": 6, "floor": floor, "about": "linear"}
    control = {"accuracy": 0.883, "interval": [0.841, 0.922], "p_value": 0.002, "test": "cnn"}
    control |= {"caught": True, "about": "warped at random", "tests": {"cnn": test}}
    metric = {"family": "distances", "label": "KID, random", "value": 0.01234, "ideal": 0.0}
    metric |= {"interval": [0.0101, 0.0143], "floor": 0.0001, "n": 240, "split": "test", "seed": 7}
    return {
        "deformgan": "9.8.7",
        "seed": 7,
        "seconds": 93.1,
        "subject": {"kind": "run", "images": {"real": 120, "fake": 121}, "size": [32, 32, 1]},
        "verdict": {
            "test": "statistics",
            "accuracy": 0.971,
            "interval": [0.933, 0.992],
            "p_value": 0.001,
            "p_value_adjusted": 0.003,
            "decision": "apart",
            "floor": 0.463,
            "detectable": 0.584,
            "words": "A fresh classifier tells generated from real images.",
        },
        "tests": {"statistics": test, "shape": {"reason": "not available: no masks"}},
        "controls": {
            "source_warped": control,
            "field_minus_25_percent": control | {"caught": False},
            "noise_5_percent": {"reason": "not available: no noise model"},
        },
        "metrics": {
            "kid_random": metric,
            "fid": {"family": "distances", "label": "FID", "reason": "not available: no weights"},
            "odd": {"family": "my_family", "label": "Odd", "value": -1.5e-7, "unit": "px"},
        },
        "warnings": ["only 6 blocks"],
    }


def write(folder, **changes):
    given = {
        "title": "Worms",
        "facts": {"workdir": "runs/worms", "devices": "2 CPU cores", "config": '{"seed": 0}'},
        "evaluation": evaluation(),
        "records": records(),
        "pictures": pictures(),
        "warnings": ["the source image is held out"],
    }
    file = folder / "report.html"
    page.write(file, **(given | changes))
    assert [f.name for f in folder.iterdir()] == [file.name]
    return file.read_bytes().decode("ascii")  # so it does not depend on the locale


def test_the_page_needs_nothing_else(tmp_path):
    text = write(tmp_path)
    parsed = Parsed(text)
    for tag, attributes, _ in parsed.elements:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not [name for name in attributes if name.startswith("on")]
        assert "url(" not in attributes.get("style", "")
    (style,) = parsed.all("style")
    assert "@import" not in style[2] and not re.search(r"url\s*\(", style[2])
    assert not [e for e in parsed.all("link") if e[1]["rel"] == "stylesheet"]
    assert not {"iframe", "object", "embed", "base", "form"} & {e[0] for e in parsed.elements}
    (script,) = parsed.all("script")
    assert not script[1] and "fetch" not in script[2]
    digest = base64.b64encode(hashlib.sha256(script[2].encode()).digest()).decode()
    (policy,) = (e[1]["content"] for e in parsed.all("meta") if "http-equiv" in e[1])
    assert f"'sha256-{digest}'" in policy and "default-src 'none'" in policy


def translated(count=3):
    """Pictures of pairs: inputs twice as wide, errors from 0 to 90, not judged in one corner."""
    shown = pictures(count, 16, 3)
    rng = np.random.default_rng(1)
    error = rng.uniform(0, 90, (count, 16, 16))
    error[:, :4, :4] = np.nan
    inputs = rng.integers(0, 256, (count, 16, 32, 1), np.uint8)
    maps = gallery.ErrorMaps(error, 90.0, "an angle", "°")
    return page.Pictures(shown.real, shown.generated, condition=inputs, error=maps)


def calibrated():
    found = evaluation()
    slope = {"family": "calibration", "label": "Slope", "value": 1.5, "quartiles": [1.25, 1.75]}
    slope["curve"] = [[4.0 + i, 10.0 + 2 * i, 5.0, 30.0 + i] for i in range(10)]
    found["metrics"]["calibration_slope"] = slope
    return found


@pytest.mark.parametrize("kind", ["full", "empty", "pairs"])
def test_the_page_is_accessible(tmp_path, kind):
    changes = {"full": {}, "empty": {"evaluation": None, "records": []}}
    changes["pairs"] = {"evaluation": calibrated(), "pictures": translated()}
    parsed = Parsed(write(tmp_path, **changes[kind]))
    ids = [e[1]["id"] for e in parsed.elements if "id" in e[1]]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in parsed.elements:
        for name in ("aria-labelledby", "for"):
            assert set(attributes.get(name, "").split()) <= set(ids)
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids
    assert [len(parsed.all(t)) for t in ("h1", "main", "header", "footer", "nav")] == [1] * 5
    assert parsed.all("html")[0][1]["lang"] == "en" and parsed.all("title")[0][2] == "Worms"
    assert all(e[1]["alt"] and e[1]["width"] and e[1]["height"] for e in parsed.all("img"))
    assert len(parsed.all("caption")) == len(parsed.all("table"))
    assert all(e[1].get("scope") in ("row", "col") for e in parsed.all("th"))
    for svg in parsed.all("svg"):
        named = svg[1].get("aria-label") or svg[1].get("aria-labelledby")
        assert svg[1].get("aria-hidden") == "true" or (svg[1]["role"] == "img" and named)


def test_hostile_strings_stay_text(tmp_path):
    def poison(tree):
        if isinstance(tree, dict):
            return {k: poison(v) for k, v in tree.items()}
        if isinstance(tree, list):
            return [poison(v) for v in tree]
        return HOSTILE if isinstance(tree, str) else tree

    bad = poison(evaluation())
    bad["verdict"]["test"] = "statistics"
    bad["tests"][HOSTILE] = bad["tests"]["statistics"]
    bad["controls"][HOSTILE] = bad["controls"]["source_warped"]
    bad["metrics"]["named"] = evaluation()["metrics"]["kid_random"] | {"label": HOSTILE}
    text = write(
        tmp_path,
        title=HOSTILE,
        facts={HOSTILE: HOSTILE, "workdir": HOSTILE, "date": HOSTILE, "config": HOSTILE},
        evaluation=bad,
        records=[{"step": 1, HOSTILE: 1.0, "evaluate/" + HOSTILE: 2.0, "diversity": HOSTILE}],
        warnings=[HOSTILE],
    )
    assert "<script>alert" not in text and "<img src=x" not in text
    parsed = Parsed(text)
    assert len(parsed.all("script")) == 1
    assert not [e for e in parsed.elements if any(name.startswith("on") for name in e[1])]
    assert parsed.all("h1")[0][2] == HOSTILE
    assert [e[2] for e in parsed.all("code")] == [HOSTILE]
    titles = [e[2] for e in parsed.all("title")]
    assert titles[0] == HOSTILE and sum(HOSTILE in t for t in titles) >= 4
    assert HOSTILE in Parsed(write(tmp_path, title=HOSTILE, evaluation=None)).text


def nulls(tree):
    if isinstance(tree, dict):
        return {k: nulls(v) for k, v in tree.items()}
    if isinstance(tree, list):
        return [nulls(v) for v in tree]
    return tree if isinstance(tree, str | bool) else None


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("numbers", {"evaluation": nulls(evaluation())}),
        ("evaluation", {"evaluation": {}}),
        ("parts", {"evaluation": dict.fromkeys(evaluation())}),
        ("tests", {"evaluation": {"tests": {"a": {"reason": "r"}}, "metrics": {"m": {}}}}),
        ("infinite", {"evaluation": {"metrics": {"m": {"label": "M", "value": float("nan")}}}}),
        ("pictures", {"pictures": NONE}),
        ("records", {"records": []}),
        ("all", {"evaluation": None, "records": [], "pictures": NONE, "facts": {}, "warnings": []}),
    ],
)
def test_what_is_missing_is_left_out(tmp_path, name, changes):
    text = write(tmp_path, **changes)
    parsed = Parsed(text)
    shown = {e[1].get("id") for e in parsed.all("section")}
    assert {"verdict", "warnings", "facts"} <= shown
    assert ("gallery" in shown) == (name not in ("pictures", "all"))
    assert ("curves" in shown) == (name not in ("records", "all"))
    assert "None" not in parsed.text and not re.search(r"\b(nan|inf)\b", parsed.text)
    assert ("No warnings." in parsed.text) == (name == "all")


def test_an_unevaluated_run_says_so_and_how_to_change_it(tmp_path):
    parsed = Parsed(write(tmp_path, evaluation=None, facts={"workdir": "runs/my worms"}))
    assert "has not been evaluated" in parsed.text
    assert parsed.all("code")[0][2] == (
        "python -m deformgan.main --mode=evaluate --workdir='runs/my worms'"
    )


def test_numbers_are_those_given(tmp_path):
    parsed = Parsed(write(tmp_path))
    cells = [" ".join(e[2].split()) for e in parsed.all("td")]
    for wanted in (
        ["97.1%", "93.3% to 99.2%", "0.001", "0.0011", "46.3% (40.1% to 53.2%)", "58.4%", "1,240"],
        ["88.3%", "84.1% to 92.2%", "0.002"],
        ["0.0123", "0.0101 to 0.0143", "0.0001", "0"],
    ):
        first = cells.index(wanted[0])
        assert cells[first : first + len(wanted)] == wanted
    assert "\N{MINUS SIGN}1.5 \N{MULTIPLICATION SIGN} 10⁻⁷ px" in cells
    for words in ("told apart", "only 6 blocks", "the source image is held out", "1 of 2"):
        assert words in parsed.text
    for words in ("Distances between real and generated", "my family", "caught", "missed"):
        assert words in parsed.text
    assert [e[2] for e in parsed.all("span", "reason")] == [
        "not available: no masks",
        "not available: no noise model",
        "not available: no weights",
    ]
    assert "n = 240, seed 7, test split" in parsed.all("footer")[0][2]


def test_the_forest_plot_puts_numbers_where_its_axis_says(tmp_path):
    text = write(tmp_path)
    wide = text[text.index('class="forest wide"') : text.index('class="forest narrow"')]
    ticks = re.findall(r'<text class="tick" x="([\d.]+)" y="[\d.]+" text-anchor="\w+">(\d+)%', wide)
    places = np.array([[float(x), float(label) / 100] for x, label in ticks])
    slope, start = np.polyfit(places[:, 1], places[:, 0], 1)
    circle = float(re.search(r'<circle class="dot" cx="([\d.]+)"', wide)[1])
    diamond = float(re.search(r'class="floor" d="M[\d.]+ [\d.]+L([\d.]+)', wide)[1])
    low, high = re.search(r'class="interval" d="M([\d.]+) [\d.]+H([\d.]+)', wide).groups()
    found = (np.array([circle, diamond, float(low), float(high)]) - start) / slope
    np.testing.assert_allclose(found, [0.971, 0.463, 0.933, 0.992], atol=0.001)


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({}, "apart", "told apart"),
        ({"decision": "open"}, "open", "undecided: too few blocks for this test"),
        ({"decision": "alike"}, "alike", "indistinguishable within this test's power"),
        ({"p_value_adjusted": None}, "open", "no verdict"),
    ],
)
def test_the_badge_follows_the_verdict(tmp_path, changes, state, words):
    changed = evaluation()
    changed["verdict"] |= changes
    parsed = Parsed(write(tmp_path, evaluation=changed))
    (badge,) = parsed.all("p", "badge")
    assert badge[2].endswith(words)
    assert [e[1]["class"] for e in parsed.all("section") if e[1]["id"] == "verdict"] == [state]


def test_nothing_is_called_alike_by_a_test_that_could_not_tell(tmp_path):
    changed = evaluation()
    changed["verdict"] |= {"p_value_adjusted": 1.0, "decision": "alike"}
    for control in changed["controls"].values():
        control["caught"] = False
    assert "no control was caught either" in write(tmp_path, evaluation=changed)
    changed["tests"]["statistics"]["smallest_p_value"] = 0.0625
    changed["verdict"]["decision"] = "open"
    parsed = Parsed(write(tmp_path, evaluation=changed))
    assert "undecided: too few blocks" in parsed.text
    assert "statistics (smallest p 0.0625)" in parsed.text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "\N{EN DASH}"),
        (float("nan"), "\N{EN DASH}"),
        (0, "0"),
        (0.0, "0"),
        (4000, "4,000"),
        (1234567, "1,234,567"),
        (0.97149, "0.971"),
        (999.6, "1,000"),
        (12345.6, "12,300"),
        (0.00012345, "0.000123"),
        (-2.5, "\N{MINUS SIGN}2.5"),
        (1.5e9, "1.5 \N{MULTIPLICATION SIGN} 10⁹"),
        (-1e-12, "\N{MINUS SIGN}1 \N{MULTIPLICATION SIGN} 10⁻¹²"),
        ("n/a", "n/a"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert page.number(value) == text


def test_percent_of_a_share():
    assert [page.percent(v) for v in (0.971, 1, 0.58, 0.9999, None)] == (
        ["97.1%", "100%", "58%", "100%", "\N{EN DASH}"]
    )


def test_images_are_those_given_and_at_most_24(tmp_path):
    for channels in (1, 3):
        shown = pictures(count=26, size=16, channels=channels)
        parsed = Parsed(write(tmp_path, pictures=shown))
        found = collections.defaultdict(list)
        for _, attributes, _ in parsed.all("img"):
            data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
            found[attributes["alt"].split()[0]].append(imagecodecs.png_decode(data))
            assert "loading" not in attributes  # a picture of the whole page shows them all
        for kind, name in (("real", "real"), ("sample", "generated"), ("training", "nearest")):
            wanted = getattr(shown, name)[:24].reshape(np.shape(found[kind]))
            np.testing.assert_array_equal(found[kind], wanted)
        assert "The first 24 of 26." in parsed.text


def test_pairs_are_rows_of_input_prediction_target_and_error(tmp_path):
    shown = translated(count=26)
    parsed = Parsed(write(tmp_path, pictures=shown))
    found = collections.defaultdict(list)
    for _, attributes, _ in parsed.all("img"):
        data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"))
        found[attributes["alt"].split()[0]].append(imagecodecs.png_decode(data))
    assert [e[1]["alt"].split()[0] for e in parsed.all("img")][1:] == 24 * [
        "input",
        "prediction",
        "target",
        "error",
    ]
    for name, wanted in (
        ("input", shown.condition[..., 0]),
        ("prediction", shown.generated),
        ("target", shown.real),
    ):
        np.testing.assert_array_equal(found[name], wanted[:24])
    colours, scale = np.array(found["error"]), found["colour"][0]
    assert (colours[:, :4, :4] == 128).all()  # grey
    place = np.round(shown.error.values[:24] / 90 * (scale.shape[1] - 1))
    there = np.isfinite(place)
    named = scale[0, place[there].astype(int)].astype(int)  # by the legend, to half a step
    assert np.abs(named - colours[there]).max() <= 8
    (legend,) = parsed.all("figure", "scale")
    assert "Error: an angle." in legend[2] and legend[2].split()[-1] == "0°45°90°"
    median = np.nanmedian(shown.error.values[0])
    assert f"error, median {median:.3g}°" in parsed.text and "The first 24 of 26" in parsed.text


def test_spread_and_error_are_drawn_where_the_axes_say(tmp_path):
    found = calibrated()
    curve = np.array(found["metrics"]["calibration_slope"]["curve"])
    drawn = drawing.calibration(curve.tolist())
    places = {}
    for axis in ("across", "up"):
        ticks = np.array([[float(place), float(label)] for place, label in drawn[axis]])
        places[axis] = np.polyfit(ticks[:, 0], ticks[:, 1], 1)
    x, y = np.array(drawn["points"]).T
    np.testing.assert_allclose(np.polyval(places["across"], x), curve[:, 0], atol=0.02)
    np.testing.assert_allclose(np.polyval(places["up"], y), curve[:, 1], atol=0.02)
    bars = np.polyval(places["up"], np.array(drawn["bars"])[:, 1:])
    np.testing.assert_allclose(bars, curve[:, 2:], atol=0.02)
    parsed = Parsed(write(tmp_path, evaluation=found))
    assert len(parsed.all("figure", "calibration")) == 1
    assert "quartiles 1.25 to 1.75" in parsed.text
    assert drawing.calibration(None) is None and drawing.calibration([[np.nan] * 4]) is None
    found["metrics"]["calibration_slope"]["curve"][0][0] = None  # as JSON holds it
    assert not Parsed(write(tmp_path, evaluation=found)).all("figure", "calibration")


def test_inputs_and_errors_that_do_not_fit_are_refused(tmp_path):
    given = vars(translated())
    for changes, message in (
        ({"condition": given["condition"][:2]}, r"pictures\.condition: wanted one of each"),
        ({"real": given["real"][:2]}, r"pictures\.real: wanted 3 targets, got 2"),
        (
            {"error": dataclasses.replace(given["error"], values=np.zeros((2, 16, 16)))},
            r"pictures\.error: wanted shape",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path, pictures=page.Pictures(**(given | changes)))


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("real", np.zeros((2, 8, 8)), r"pictures.real: wanted shape"),
        ("generated", np.zeros((3, 8, 8, 1)), r"pictures.generated: wanted uint8"),
        ("generated", np.zeros((3, 8, 8, 2), np.uint8), r"pictures.generated: wanted \(1, 3\)"),
        ("nearest", np.zeros((2, 8, 8, 1), np.uint8), r"pictures.nearest: wanted one of each"),
        ("displacement", np.zeros((3, 8, 8, 3)), r"pictures.displacement: wanted \(2,\)"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(tmp_path, name, array, message):
    given = vars(pictures(size=8)) | {name: array}
    with pytest.raises(ValueError, match=message):
        write(tmp_path, pictures=page.Pictures(**given))


def absolute(path):
    """The points of every line of a mesh, in pixels."""
    lines = []
    for start, steps in re.findall(r"M(-?\d+ ?-?\d+)l([^M]*)", path):
        numbers = [np.array(re.findall(r"-?\d+", part), int) for part in (start, steps)]
        moves = np.concatenate(numbers).reshape(-1, 2)
        lines.append(np.cumsum(moves, axis=0) / 10)
    return lines


def test_a_mesh_shows_where_the_output_samples_the_source():
    field = np.random.default_rng(0).uniform(-20, 20, (33, 17, 2)).astype(np.float32)
    lines = absolute(drawing.mesh(field)["lines"])
    seen = np.indices((33, 17)).transpose(1, 2, 0) + field
    wanted = [seen[r] for r in (0, 8, 16, 24, 32)] + [seen[:, c] for c in (0, 8, 16)]
    for line, points in zip(lines, wanted, strict=True):
        np.testing.assert_allclose(line, points[:, ::-1], atol=0.0501)  # a tenth of a pixel


def test_folds_are_marked_where_they_sample(tmp_path):
    field = np.zeros((3, 32, 32, 2), np.float32)
    assert drawing.mesh(field[0])["folds"] == ""
    columns = np.arange(32.0)
    field[1, :, :, 1] = np.interp(columns, [0, 10, 14, 31], [0, 5, -5, 0])  # x + u turns at 10
    found = drawing.mesh(field[1])
    assert found["folded"] == pytest.approx(4 / 31)
    runs = np.array(re.findall(r"M(-?\d+) (-?\d+)h(\d+)", found["folds"]), int)
    assert sorted(set(runs[:, 1])) == list(range(0, 311, 10))
    assert set(runs[:, 0]) == {85} and set(runs[:, 0] + runs[:, 2]) == {155}  # from 9 to 15
    field[2] = np.nan
    given = vars(pictures(size=32)) | {"displacement": field}
    parsed = Parsed(write(tmp_path, pictures=page.Pictures(**given)))
    assert len(parsed.all("path", "folds")) == 1 and len(parsed.all("path", "lines")) == 2
    for words in ("no folds", "12.9% folded", "field not drawn: not finite"):
        assert words in parsed.text


def test_fields_do_not_make_a_large_page(tmp_path):
    shown = pictures(count=24, size=128)
    noise = np.random.default_rng(0).normal(0, 3, (24, 128, 128, 2)).astype(np.float32)
    text = write(tmp_path, pictures=page.Pictures(**(vars(shown) | {"displacement": noise})))
    images = sum(len(src) for src in re.findall(r'src="(data:[^"]*)"', text))
    assert len(text) - images < 1.5e6 and len(text) < 3e6


def test_long_records_are_thinned_to_block_means(tmp_path):
    values = np.random.default_rng(0).normal(5, 1, 10_000)
    lines = [{"step": i + 1, "gen/adversarial": v} for i, v in enumerate(values)]
    for i in range(0, 10_000, 100):
        lines[i]["evaluate/kid"] = 0.1
    first, other, block = drawing.panels(lines)
    assert block == 25 and not other and [p["title"] for p in first] == ["Losses", "kid"]
    points = np.array([p.split() for p in first[0]["legend"][0]["path"][1:].split("L")], float)
    assert len(points) == 400
    (y0, low), *_, (y1, high) = first[0]["up"]
    found = float(low) + (points[:, 1] - y0) / (y1 - y0) * (float(high) - float(low))
    np.testing.assert_allclose(found, values.reshape(400, 25).mean(1), atol=0.01)
    assert first[0]["legend"][0]["last"] == values[-1]
    assert first[1]["legend"][0]["path"].count("L") == 99  # short series stay whole
    text = write(tmp_path, records=lines)
    assert "of 10,000 lines logged, each point is the mean of up to 25 values" in text


def test_every_series_is_drawn_and_what_cannot_be_is_counted():
    lines = records(3)
    lines[0] |= {"gen/adversarial": float("nan"), "disc/gradient_norm": 0.0, "folded": None}
    del lines[1]["diversity"]
    first, other, _ = drawing.panels(lines)
    legends = {one["name"]: one for panel in first + other for one in panel["legend"]}
    assert set(legends) == {name for line in lines for name in line} - {"step"}
    left_out = {name: one["left_out"] for name, one in legends.items() if one["left_out"]}
    assert left_out == {"gen/adversarial": 1, "disc/gradient_norm": 1, "folded": 1}
    assert legends["diversity"]["path"].count("L") == 1
    assert drawing.panels([{"step": 1, "diversity": None}]) == ([], [], 1)


@pytest.mark.parametrize("values", [[1e12, 3e12], [0.0, 0.0], [-5.0], [1.0, 1.0, 1e9], [1e299, -1]])
def test_axes_hold_any_values(values):
    for name in ("gen/adversarial", "gen/gradient_norm", "folded"):
        lines = [{"step": i, name: v} for i, v in enumerate(values)]
        ((panel,), _, _) = drawing.panels(lines)
        numbers = re.findall(r"[-\d.]+", panel["legend"][0]["path"].replace("h0", ""))
        points = np.array(numbers, float).reshape(-1, 2)
        plot = drawing.PLOT
        assert (points[:, 0] >= plot["left"]).all() and (points[:, 0] <= plot["right"]).all()
        assert (points[:, 1] >= plot["top"]).all() and (points[:, 1] <= plot["bottom"]).all()
        assert 2 <= len(panel["up"]) <= 8
        assert all(len(label) <= 7 for _, label in panel["up"])


FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
CONTRASTS = """
const light = (c) => { c /= 255; return c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
const numbers = (css) => css.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
const behind = (e) => {
  for (; e; e = e.parentElement) {
    const colour = numbers(getComputedStyle(e).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
const found = [];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !e.checkVisibility() || e.closest("title, desc")) continue;
  const style = getComputedStyle(e);
  const pair = [numbers(e.closest("svg") ? style.fill : style.color), behind(e)].map(luminance);
  const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
  found.push([ratio, e.tagName + "." + (e.getAttribute("class") || "") + ": " + e.textContent]);
}
return found;
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium with the page open; nothing is downloaded."""
    webdriver = pytest.importorskip("selenium.webdriver")
    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no Chromium with its chromedriver on this machine")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page").mkdir()
    write(folder / "page", pictures=pictures(count=24, size=128), records=records(2000))
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in FLAGS:
        options.add_argument(flag)
    options.add_argument(f"--user-data-dir={folder / 'profile'}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    chrome = webdriver.Chrome(options=options, service=service)
    chrome.address = (folder / "page" / "report.html").as_uri()
    yield chrome
    chrome.quit()


def visit(browser, size, theme="light"):
    width, height = SIZES[size]
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wanted = {"prefers-color-scheme": theme, "prefers-reduced-motion": "reduce"}
    features = [{"name": name, "value": value} for name, value in wanted.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(browser.address)
    browser.execute_script("localStorage.clear()")
    browser.get(browser.address)


@pytest.mark.parametrize("size", SIZES)
def test_a_browser_shows_the_page(browser, size):
    visit(browser, size)
    run = browser.execute_script
    assert run("return innerWidth") == SIZES[size][0]
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    run("for (const box of document.querySelectorAll('details')) box.open = true")
    assert run("return document.documentElement.scrollWidth <= innerWidth")
    for selector in ("h1", ".lead", f".forest.{'wide' if size == 'desktop' else 'narrow'}"):
        assert browser.find_element("css selector", selector).is_displayed()
    run("for (const image of document.images) image.loading = 'eager'")
    browser.set_script_timeout(20)
    widths = browser.execute_async_script(
        "const done = arguments[0];"
        "Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
        ".then(done, (error) => done([String(error)]))"
    )
    assert widths == [128] * 72
    assert run("return document.images[0].getBoundingClientRect().width") == 128
    loaded = run("return performance.getEntriesByType('resource').map((e) => e.name.slice(0, 5))")
    assert set(loaded) <= {"data:"}
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_in_both_themes(browser, theme):
    visit(browser, "desktop", theme)
    browser.execute_script("for (const d of document.querySelectorAll('details')) d.open = true")
    found = browser.execute_script(CONTRASTS)
    kinds = {text.split(":")[0] for _, text in found}
    assert len(found) > 200 and {"P.muted", "P.lead", "text.tick"} <= kinds
    assert [(ratio, text) for ratio, text in found if ratio < 4.5] == []


def test_the_theme_button_changes_the_theme(browser):
    visit(browser, "desktop", "light")
    ground = "return getComputedStyle(document.body).backgroundColor"
    button = browser.find_element("id", "theme")
    light = browser.execute_script(ground)
    assert button.text == "Dark theme"
    button.click()
    dark = browser.execute_script(ground)
    assert dark != light and button.text == "Light theme"
    browser.get(browser.address)
    assert browser.execute_script(ground) == dark  # it is remembered
    browser.find_element("id", "theme").click()
    assert browser.execute_script(ground) == light


def test_the_gallery_is_worked_by_keyboard(browser):
    visit(browser, "desktop")
    active = "return document.activeElement.id"
    press = browser.switch_to.active_element.send_keys
    shown = "return getComputedStyle(document.images[0]).filter"
    assert browser.execute_script(shown) == "contrast(1) brightness(1)"
    seen = []
    for _ in range(40):
        press("\ue004")  # Tab
        press = browser.switch_to.active_element.send_keys
        seen.append(browser.execute_script(active))
        if seen[-1] == "contrast":
            break
    assert seen[-1] == "contrast" and "theme" in seen
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.execute_script(outline) == "solid"
    press("\ue014" * 4)  # arrow to the right
    assert browser.execute_script(shown) == "contrast(1.2) brightness(1)"
    assert browser.find_element("css selector", "output[for=contrast]").text == "120%"
    browser.find_element("css selector", "input[name=zoom][value='3']").click()
    assert browser.execute_script("return document.images[0].width") == 384
    assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    browser.find_element("id", "show-fields").click()
    assert not browser.find_element("css selector", ".field").is_displayed()
    browser.find_element("id", "reset").click()
    assert browser.execute_script(shown) == "contrast(1) brightness(1)"
    assert browser.find_element("css selector", ".field").is_displayed()
    assert browser.get_log("browser") == []
