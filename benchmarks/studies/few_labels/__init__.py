"""Few labelled cases on six public data sets: which pre-training and which fine-tuning help, in the stock commands."""
