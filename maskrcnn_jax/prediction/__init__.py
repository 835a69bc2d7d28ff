"""Uses a trained model on pictures: from files to results."""
