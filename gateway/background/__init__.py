"""The clock's door: work that runs because time passes."""
