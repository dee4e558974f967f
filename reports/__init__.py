"""Reports: tables, figures and pages of tuning and measurement results."""
