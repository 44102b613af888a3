"""From results to report.json and report.html."""
