"""A score carries its setting wherever it goes."""

import json
import math

from kdcache.evals import Score, chance

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


def test_chance_is_given_where_it_is_one_number():
    def score(metric, num_classes):
        return Score(
            protocol="linear", setting={}, metric=metric, value=1.0, num_queries=9,
            num_classes=num_classes,
        )  # fmt: skip

    assert chance(score("top1", 50)) == 2.0
    assert chance(score("top5", 50)) == 10.0
    assert math.isnan(chance(score("mAP", 50)))
    assert math.isnan(chance(score("top1", 0)))


def test_text_shows_percent_to_a_tenth_and_others_to_a_thousandth():
    assert SCORE.text == "67.5"
    cka = Score(
        protocol="fidelity", setting={}, metric="cka", value=0.51249, num_queries=9,
        num_classes=0, unit="one",
    )  # fmt: skip
    assert (cka.text, cka.label) == ("0.512", "fidelity")
