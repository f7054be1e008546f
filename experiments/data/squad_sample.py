"""A few paragraphs with questions, for tests and trials without a file."""

from typing import Any

ARTICLES = {
    "Lighthouse": [
        (
            "The lighthouse on Gull Rock was built in 1862 by the engineer Marta "
            "Lindqvist. It is 31 metres high and painted white. The lamp burned whale "
            "oil until 1911, when an electric lamp replaced it. Since 1987 the light "
            "has had no keeper, and a computer in the town of Selby watches over it.",
            [
                ("When was the lighthouse built?", "1862"),
                ("Who built the lighthouse?", "Marta Lindqvist"),
                ("How high is the lighthouse?", "31 metres"),
                ("What did the lamp burn until 1911?", "whale oil"),
                ("What watches over the light since 1987?", "a computer"),
            ],
        ),
        (
            "Three families of keepers lived on Gull Rock. The Aagards kept goats, the "
            "Novaks kept bees, and the Okoros kept the weather book, which has an "
            "entry for every day from 1890 to 1934.",
            [
                ("Who kept bees?", "the Novaks"),
                ("What did the Aagards keep?", "goats"),
                ("Which years does the weather book cover?", "from 1890 to 1934"),
            ],
        ),
    ],
    "Bakery": [
        (
            "Caf\u00e9 Ren\u00e9e opens at six. Its baker, Zo\u00eb M\u00fcller, mixes "
            "rye and wheat flour with water \u2014 never milk \u2014 and lets the "
            "dough rest for nineteen hours.\r\nThe sign over the door shows a "
            "\U0001f950 and the words \u201cFresh or free\u201d.",
            [
                ("When does the bakery open?", "six"),
                ("Who is the baker?", "Zo\u00eb M\u00fcller"),
                ("How long does the dough rest?", "nineteen hours"),
                ("What does the sign say?", "Fresh or free"),
            ],
        ),
    ],
    "River": [
        (
            "The river Tamsel rises in the Harrow Hills and flows north for 214 "
            "kilometres. At the village of Oster it is crossed by a stone bridge with "
            "seven arches. In spring salmon swim up the river to the lake of Brae.",
            [
                ("Where does the river rise?", "the Harrow Hills"),
                ("How many arches has the bridge?", "seven"),
            ],
        ),
    ],
}


def document() -> dict[str, Any]:
    """The articles in the form of SQuAD v1.1."""
    return {
        "version": "1.1",
        "data": [
            {
                "title": title,
                "paragraphs": [
                    _paragraph(f"{title.lower()}-{number}", context, pairs)
                    for number, (context, pairs) in enumerate(paragraphs)
                ],
            }
            for title, paragraphs in ARTICLES.items()
        ],
    }


def _paragraph(name: str, context: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "context": context,
        "qas": [
            {
                "id": f"{name}-{number}",
                "question": question,
                "answers": [{"answer_start": context.index(text), "text": text}],
            }
            for number, (question, text) in enumerate(pairs)
        ],
    }
