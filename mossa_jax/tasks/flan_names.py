"""FLAN 2021 (Wei et al., arXiv 2109.01652): its 69 task names, their clusters, and which of them a run takes.

The authors of the paper that this package reproduces (Zhao, Ziser, Cohen, arXiv 2410.20008) list the same 69 names,
train on "60 tasks" and hold out seven. Their publication leaves open which names these are, what became of the two
names beyond FLAN's own count (`true_case`, `word_segment`), and whether examples-proportional mixing had a maximum
rate. The selection `paper` is our reading, not their statement:

- The 60 names of FLAN's eleven clusters without Misc. are trained on.
- The seven names of Misc. are held out: Misc. has exactly seven tasks, it is the only cluster that the paper's plot of
  clusters leaves out, and none of the unseen tasks appears in the paper's main figure.
- The two extra names are unused.
- There is no maximum rate but a cap per cluster (`tasks.max_per_cluster`).

`flan62` is FLAN's own count, 62 data sets in 12 clusters: the names that share a data set are one task. `all69` is
every name. Neither holds anything out.
"""

from __future__ import annotations

from dataclasses import dataclass

from mossa_jax.config import SELECTIONS
from mossa_jax.errors import BAD_CONFIG, Refusal

MISC = "misc"
EXTRA = "text_formatting"
"""Cluster of the two names that are not in FLAN's 62 data sets."""


@dataclass(frozen=True)
class FlanTask:
    """One of FLAN's 69 task names.

    Attributes:
      name: what FLAN and the authors call it.
      cluster: FLAN's cluster of its data set.
      rows: training rows before any cap.
      submix: its name in the Parquet submix, without version; empty if another task has the same one.
      joined: the data set that it shares with other names; empty if it has one of its own.
    """

    name: str
    cluster: str
    rows: int
    submix: str
    joined: str = ""

    @property
    def data_set(self) -> str:
        """FLAN's name for the data set."""
        return self.joined or self.name


FLAN_TASKS = (
    FlanTask("anli_r1", "nli", 16_940, "anli/r1", "anli"),
    FlanTask("anli_r2", "nli", 45_460, "anli/r2", "anli"),
    FlanTask("anli_r3", "nli", 100_450, "anli/r3", "anli"),
    FlanTask("cb", "nli", 200, "super_glue/cb"),
    FlanTask("mnli_matched", "nli", 392_500, "glue/mnli", "mnli"),
    FlanTask("mnli_mismatched", "nli", 392_500, "", "mnli"),
    FlanTask("qnli", "nli", 104_540, "glue/qnli"),
    FlanTask("rte", "nli", 2_290, "super_glue/rte"),
    FlanTask("snli", "nli", 549_360, "snli"),
    FlanTask("wnli", "nli", 600, "glue/wnli"),
    FlanTask("bool_q", "reading_comprehension", 9_220, "bool_q"),
    FlanTask("drop", "reading_comprehension", 77_200, "drop"),
    FlanTask("multirc", "reading_comprehension", 27_040, "super_glue/multirc"),
    FlanTask("openbookqa", "reading_comprehension", 4_950, "openbookqa"),
    FlanTask("squad_v1", "reading_comprehension", 87_390, "squad/v1.1", "squad"),
    FlanTask("squad_v2", "reading_comprehension", 130_110, "squad/v2.0", "squad"),
    FlanTask("arc_challenge", "closed_book_qa", 910, "ai2_arc/ARC-Challenge", "arc"),
    FlanTask("arc_easy", "closed_book_qa", 2_040, "ai2_arc/ARC-Easy", "arc"),
    FlanTask("natural_questions", "closed_book_qa", 87_720, "natural_questions_open"),
    FlanTask("trivia_qa", "closed_book_qa", 87_420, "trivia_qa/rc"),
    FlanTask("copa", "commonsense", 350, "super_glue/copa"),
    FlanTask("hellaswag", "commonsense", 39_700, "hellaswag"),
    FlanTask("piqa", "commonsense", 16_010, "piqa"),
    FlanTask("story_cloze", "commonsense", 1_670, "story_cloze/2016"),
    FlanTask("cosmos_qa", "reading_comprehension_commonsense", 25_060, "cosmos_qa"),
    FlanTask("record", "reading_comprehension_commonsense", 100_520, "super_glue/record"),
    FlanTask("definite_pronoun_resolution", "coreference", 1_120, "definite_pronoun_resolution"),
    FlanTask("winogrande", "coreference", 40_190, "winogrande"),
    FlanTask("wsc", "coreference", 500, "super_glue/wsc.fixed"),
    FlanTask("glue_mrpc", "paraphrase", 3_460, "glue/mrpc"),
    FlanTask("glue_qqp", "paraphrase", 363_640, "glue/qqp"),
    FlanTask("paws_wiki", "paraphrase", 49_400, "paws_wiki"),
    FlanTask("stsb", "paraphrase", 5_640, "glue/stsb"),
    FlanTask("imdb_reviews", "sentiment", 24_800, "imdb_reviews/plain_text"),
    FlanTask("sentiment140", "sentiment", 1_599_800, "sentiment140"),
    FlanTask("sst2", "sentiment", 67_140, "glue/sst2"),
    FlanTask("yelp_polarity_reviews", "sentiment", 559_800, "yelp_polarity_reviews"),
    FlanTask("common_gen", "struct_to_text", 67_180, "gem/common_gen"),
    FlanTask("dart", "struct_to_text", 62_450, "gem/dart"),
    FlanTask("e2e_nlg", "struct_to_text", 33_320, "gem/e2e_nlg"),
    FlanTask("web_nlg_en", "struct_to_text", 35_220, "gem/web_nlg_en"),
    FlanTask("aeslc", "summarization", 14_430, "aeslc"),
    FlanTask("ag_news_subset", "summarization", 119_800, "ag_news_subset"),
    FlanTask("cnn_dailymail", "summarization", 287_040, "cnn_dailymail"),
    FlanTask("gigaword", "summarization", 2_044_370, "gigaword"),
    FlanTask("multi_news", "summarization", 44_960, "multi_news"),
    FlanTask("newsroom", "summarization", 994_560, "newsroom"),
    FlanTask("opinion_abstracts_idebate", "summarization", 1_650, "opinion_abstracts_idebate"),
    FlanTask("opinion_abstracts_rotten_tomatoes", "summarization", 3_130, "opinion_abstracts_rotten_tomatoes"),
    FlanTask("samsum", "summarization", 14_730, "samsum"),
    FlanTask("wiki_lingua_english_en", "summarization", 99_000, "gem/wiki_lingua_english_en"),
    FlanTask("xsum", "summarization", 203_560, "huggingface:xsum"),
    FlanTask("para_crawl_enes", "translation", 30_000, "para_crawl_enes"),
    FlanTask("wmt14_enfr", "translation", 40_835_840, "wmt14_translate/fr-en"),
    FlanTask("wmt16_translate_csen", "translation", 52_335_360, "wmt16_translate/cs-en"),
    FlanTask("wmt16_translate_deen", "translation", 4_548_800, "wmt16_translate/de-en"),
    FlanTask("wmt16_translate_fien", "translation", 2_073_360, "wmt16_translate/fi-en"),
    FlanTask("wmt16_translate_roen", "translation", 610_320, "wmt16_translate/ro-en"),
    FlanTask("wmt16_translate_ruen", "translation", 2_516_160, "wmt16_translate/ru-en"),
    FlanTask("wmt16_translate_tren", "translation", 205_750, "wmt16_translate/tr-en"),
    FlanTask("coqa", "misc", 7_090, "coqa"),
    FlanTask("quac", "misc", 83_360, "quac"),
    FlanTask("wic", "misc", 5_220, "super_glue/wic"),
    FlanTask("trec", "misc", 5_250, "trec"),
    FlanTask("cola", "misc", 8_350, "glue/cola"),
    FlanTask("math_dataset", "misc", 1_999_780, "math_dataset/algebra__linear_1d"),
    FlanTask("fix_punct", "misc", 28_070, "fix_punct"),
    FlanTask("true_case", "text_formatting", 29_260, "true_case"),
    FlanTask("word_segment", "text_formatting", 30_000, "word_segment"),
)


CLUSTERS = tuple(dict.fromkeys(task.cluster for task in FLAN_TASKS if task.cluster not in (MISC, EXTRA)))
"""FLAN's eleven clusters without Misc.: those of the 60 names that E is trained on in our reading of the paper."""


def select(selection: str) -> tuple[FlanTask, ...]:
    """Returns the entries of a selection, in the order of `FLAN_TASKS`.

    Raises:
      Refusal: 2 for an unknown selection.
    """
    if selection not in SELECTIONS:
        raise Refusal(BAD_CONFIG, f"config.tasks.selection={selection!r} is unknown; there are {', '.join(SELECTIONS)}")
    return tuple(entry for entry in FLAN_TASKS if selection == "all69" or entry.cluster != EXTRA)
