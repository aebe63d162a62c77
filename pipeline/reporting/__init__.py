"""The report and the style of all pictures: charts, text, template, matplotlib."""
