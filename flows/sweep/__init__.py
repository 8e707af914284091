"""Many trainings on one preprocessing, compared."""
