SHOWN = {
    "class": ("quickdrop-calibrated", "quickdrop-calibrated-subset", "sga", "puf", "retraining"),
    "client": ("quickdrop-calibrated", "quickdrop-calibrated-subset", "puf", "retraining"),
}
