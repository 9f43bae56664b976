"""What is wrong or hard to learn in a dataset, and how well anchors cover its boxes."""
