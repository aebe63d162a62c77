"""The report and the look of all pictures: charts, parts, template, matplotlib."""
