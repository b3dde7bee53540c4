"""Pictures and reports: sample sheets, projections of W, training curves, and one-file HTML reports."""
