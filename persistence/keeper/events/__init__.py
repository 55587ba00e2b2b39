"""Events of present states: one module for each subject, with the `NOTICE` that creates their messages."""
