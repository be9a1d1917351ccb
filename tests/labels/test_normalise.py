import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphhalu.labels.match import fold, normalise

# without digits, and without three letters of which every number word holds one
ASCII = st.text(
    alphabet=st.characters(min_codepoint=9, max_codepoint=126, exclude_characters="0123456789eioEIO"),
    max_size=61,
)
WORDS = st.lists(
    st.sampled_from(
        ["a", "an", "the", "The", "cat", "than", "dog", "U.S.", "it's", "so-so", "-", "a-b", "A.", "(x)"]
    )
).map(" ".join)


def official(text: str) -> str:
    """Written from the description: lower, remove punctuation, articles, extra white space."""
    lowered = text.lower()
    bare = "".join(character for character in lowered if character not in set(string.punctuation))
    without_articles = re.sub(r"\b(a|an|the)\b", " ", bare)
    return " ".join(without_articles.split())


@given(ASCII | WORDS)
def test_on_ascii_without_numbers_it_is_the_official_normalisation_of_squad(text: str) -> None:
    assert normalise(text) == official(text)


@given(st.text(max_size=61))
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Gödel", "Godel"),
        ("Gorbačëv", "gorbacev"),
        ("Łódź", "Lodz"),
        ("Ødegård", "odegard"),
        ("Straße", "strasse"),
        ("Æsop", "aesop"),
        ("İstanbul", "Istanbul"),
        ("O’Neill", "O'Neill"),
        ("1914–1918", "1914-1918"),
        ("Jean‐Paul", "Jean-Paul"),
        ("１９４５年", "1945年"),
        ("ﾄｳｷｮｳ", "トウキョウ"),
        ("«Paris»", "Paris"),
        ("€5", "$5"),
        ("1,000", "1000"),
        ("1,234,567.50", "1234567.5"),
        ("3,5", "3.5"),
        ("5.0", "5"),
        ("seven", "7"),
        ("Twenty", "20"),
        ("twenty-one", "21"),
        ("ninety nine", "99"),
        ("minus five", "-5"),
        ("−5", "-5"),
        ("Five Guys", "5 guys"),
        ("one hundred", "100"),
        ("a hundred", "100"),
        ("two hundred and five", "205"),
        ("two hundred fifty", "250"),
        ("two thousand and twelve", "2012"),
        ("one thousand, nine hundred and eighty-four", "1984"),
        ("1.5 million", "1,500,000"),
        ("three hundred thousand", "300,000"),
        ("two hundred and fifty thousand", "250000"),
        ("ten billion", "10 billion"),
        ("One Hundred Years of Solitude", "100 years of solitude"),
    ],
)
def test_two_spellings_become_one(one: str, other: str) -> None:
    assert normalise(one) == normalise(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3.5", "35"),
        ("-5", "5"),
        ("1914-1918", "19141918"),
        ("1,5", "15"),
        ("10:30", "1030"),
        ("が", "か"),
        ("ば", "は"),
        ("one of them", "1 of them"),
        ("No one", "no 1"),
        ("someone", "some1"),
        ("007", "7"),
        ("hundreds of them", "100 of them"),
        ("the Hundred Years' War", "100 years war"),
        ("5 million 20 years ago", "5000020 years ago"),
        ("two hundred 5.5", "205.5"),
        ("hundred and five", "105"),
    ],
)
def test_two_different_things_stay_apart(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


@pytest.mark.parametrize("text", ["東京タワー", "が行", "서울", "Россия".lower(), "กรุงเทพ"])
def test_letters_of_other_scripts_stay_as_they_are(text: str) -> None:
    assert normalise(text) == text


def test_punctuation_is_deleted_or_read_as_a_space() -> None:
    assert normalise("New York-based, U.S.") == "new yorkbased us"
    assert normalise("New York-based, U.S.", punctuation="space") == "new york based u s"


def test_a_possessive_goes_where_punctuation_is_a_space() -> None:
    assert normalise("Paris's") == "pariss"
    assert normalise("Paris's", punctuation="space") == "paris"
    assert normalise("isn't", punctuation="space") == "isnt"


def test_characters_used_as_marks_inside_do_not_come_through() -> None:
    assert normalise("3\ue0005 \ue0017") == "35 7"
