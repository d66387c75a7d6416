"""Usual names of the columns of texts and ids, the most specific first; those of a modality are in `MODALITIES`.

This module imports nothing, because `--help` lists the names.
"""

TEXT_COLUMNS = ("text", "texts", "caption", "captions", "sentence", "sentences", "txt", "description", "title")
# Names of columns of wrong captions: SugarCrepe's, ARO's, and those that users write.
NEGATIVE_TEXT_COLUMNS = (
    *("negative_text", "negative_texts", "negative_caption", "negative_captions", "false_caption", "false_captions"),
    *("wrong_caption", "wrong_captions", "hard_negative", "hard_negatives", "negative", "negatives"),
)
ID_COLUMNS = ("id", "image_id", "audio_id", "img_id", "youtube_id", "key", "__key__")
