"""KuaiRand-Pure: the texts of its data set."""

LICENCE = "CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/"

CITATION = """\
Chongming Gao, Shijun Li, Yuan Zhang, Jiawei Chen, Biao Li, Wenqiang Lei, Peng Jiang, Xiangnan He. KuaiRand: An Unbiased \
Sequential Recommendation Dataset with Randomly Exposed Videos. CIKM 2022. https://doi.org/10.1145/3511808.3557624"""

DESCRIPTION = """\
Exposures of short videos in the Kuaishou app with the users' feedback: the standard (not randomised) log of KuaiRand-Pure \
from 2022-04-25 to 2022-05-08, with user features, video features and the users' histories before 2022-04-25."""

NOTICE = f"""\
# Licence of this data set

The data in this folder is an adaptation of KuaiRand-Pure by Chongming Gao et al. (<https://kuairand.com>), licensed under the
Creative Commons Attribution-ShareAlike 4.0 International licence (<https://creativecommons.org/licenses/by-sa/4.0/>). This
adaptation is licensed under the same licence. It comes without warranty; the authors of KuaiRand do not endorse it. The
licence of the program in this repository does not apply to this folder.

Please cite:

> {CITATION}

## Changes made

- Only the standard log from 2022-04-25 to 2022-05-08 is kept. Earlier rows are present only as the users' histories (the most
  recent videos watched, liked, and watched long before 2022-04-25) and in statistics of them.
- CSV became Parquet; exposures, user features, video features and histories are joined into one table.
- Ids are numbered anew (vocabularies.parquet maps back; user_id and video_id are the raw id + 1).
- Numbers derived from the above were added, among them label rates of earlier days. The columns is_rand, visible_status,
  server_width, server_height and duration_ms are left out.
- Rows are split by day and ordered by user_id, time_ms, video_id.
"""

README = """\
# KuaiRand-Pure, standard log, 2022-04-25 to 2022-05-08

Short-video exposures of the Kuaishou app with the users' feedback, as a data set for `dlrm-mtl`. `dataset.yaml` lists features
and labels with their statistics. Licence and citation: [LICENSE.md](LICENSE.md).

| split | days | rows |
| --- | --- | --- |
| train | 2022-04-25 to 2022-05-05 | {train:,} |
| validation | 2022-05-06 | {validation:,} |
| test | 2022-05-07 and 2022-05-08 | {test:,} |

Made by `dlrm-mtl prepare kuairand --input RAW --output DIR`, byte for byte repeatable with the pinned versions of DuckDB and
pyarrow. Rows are ordered by user_id, time_ms, video_id in every split: the histories of a user then stand next to each other
and compress four times better than in the order of time; the reader shuffles anyway.

## Columns

- Labels: is_click, is_like, is_follow, is_comment, is_forward, is_hate, long_view, is_profile_enter (0 or 1); play_time_ms,
  profile_stay_time, comment_stay_time (numbers). 5,460 rows of the raw log repeat another row in every column; they are kept.
- user_id and video_id: the raw id + 1. Other categories: numbered from 1 by descending frequency, then by value; 0 is unknown
  or missing. `vocabularies.parquet` (feature, id, value, count) maps ids back. Vocabularies of user and video columns come from
  the feature tables, which are known before the first exposure; those of tab, hour and duration_bucket from the training days.
- tag: a list of ids, as one video has several tags. watch_seq, like_seq, long_watch_seq: lists of video ids before 2022-04-25,
  oldest first, most recent last, the last {history} of at most 50 in the raw file; the statistics below use all.
- Numbers known when the video is shown: logarithms (`_log`, of 1 + the value) of the user's counts, of the duration of the
  video in seconds, of the hours since the user's last entry in the history; the age of the video in days.
- Label rates, `user_LABEL_rate` and `video_LABEL_rate`: how much more often than usual for that tab the label was 1 for the
  same user or video on strictly earlier days, shrunk towards 0 where there was little; `..._exposures_log`: from how many
  rows. Rows of the validation and test days see the training days only.
- `user_history_...`, `video_history_...` and `user_tag_history_...`: the same from the histories before 2022-04-25, for the
  same user, video, or user and first tag of the video.
- date, time_ms: carried along for analysis; no features.
"""
