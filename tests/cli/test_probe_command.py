"""`mmmask probe`: a table, a file, and mistakes in one line."""

import json


def test_a_table_of_own_files(cli, pixel_run, corpus, tmp_path):
    train, test = corpus / "images" / "train", corpus / "images" / "held_out"
    output, kept = tmp_path / "found.json", tmp_path / "kept"
    done = cli(
        "probe", pixel_run, "--train", train, "--test", f"{{name: folder, path: {test}}}", "--kinds",
        "knn,effective_rank", "--k", "1", "--control", "--cache", kept, "--output", output, "--device", "cpu",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("format run (step 2): ")
    assert lines[1] == "images: 8 classes, 8 training samples, 8 to be named"
    assert lines[3].split() == ["stream", "probe", "top-1", "top-5", "chance", "random", "weights"]
    assert lines[4].split()[:2] == ["images", "knn"]
    assert lines[5].split()[:3] == ["images", "effective", "rank"]
    assert f"features are kept in {kept}" in lines
    assert len(json.loads(output.read_text())["probes"]) == 2


def test_mistakes(mistake, pixel_run, corpus, tmp_path):
    train = corpus / "images" / "train"
    assert "no kind is named 'svm'" in mistake("probe", pixel_run, "--kinds", "svm")
    assert mistake("probe", pixel_run, "--kinds", "knn", "--no-cache") == (
        "images: knn: labels are needed: there are no held-out samples"
    )
    assert mistake("probe", pixel_run, "--train", train) == (
        "give --train and --test, or neither of them for a run's own samples"
    )
    wrong = ("probe", pixel_run, "--train", train, "--test", train, "--no-cache")
    assert mistake(*wrong) == "images: knn: k = 20, and there are 8 labelled training samples: take less"
    assert "nowhere" in mistake("probe", pixel_run, "--train", tmp_path / "nowhere", "--test", train)
