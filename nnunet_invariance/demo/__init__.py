"""One method end to end on data it makes itself: shows the pipeline and is no evidence."""
