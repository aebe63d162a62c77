"""Run the trainings of a study, and summarize them in a sentence, a table and a figure."""
