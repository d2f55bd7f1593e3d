"""Tables and figures over several runs."""
