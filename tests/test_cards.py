"""The cards: every data source has a licence, and what the artifact holds is what is printed."""

import pytest
from script_modules import ROOT, script

from autoopt.meta import artifact
from autoopt.tasks import all_tasks


@pytest.fixture(scope="module")
def cards():
    return script("write_cards")


def test_every_source_says_where_it_ships_and_its_licence(cards):
    sources = {task.source for task in all_tasks()}
    assert sources - set(cards.LICENCES) == set()
    assert all(where and licence for where, licence in cards.LICENCES.values())


def test_the_model_card_is_that_of_the_shipped_artifact(cards):
    text = cards.model_card(ROOT / "meta_data")
    assert text == (ROOT / "meta_data" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert artifact.load().sha256 in text


def test_the_ranking_of_features_is_on_the_card(cards, tmp_path):
    (tmp_path / cards.RANKING_FILE).write_text("| feature |\n| --- |\n| `telling` |\n")
    assert "| `telling` |" in cards._ranking(tmp_path)
    assert cards._ranking(tmp_path / "none") == []
