"""A score carries its setting wherever it goes."""

import json

from kdcache.evals import Score

SCORE = Score(
    protocol="knn",
    setting={"k": 10, "vote": "plain"},
    metric="top1",
    value=67.5,
    num_queries=200,
    num_classes=50,
)


def test_score_survives_json():
    assert Score(**json.loads(json.dumps(SCORE.to_dict()))) == SCORE


def test_label_names_the_protocol_and_its_setting():
    assert SCORE.label == "knn (k=10, vote=plain)"
