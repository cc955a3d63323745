"""What predictions are worth: scores per case and class, means with intervals, a page to look at, and paired comparisons."""
