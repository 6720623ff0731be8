"""A test bed for everything that crosses a network, on one machine.

`layout` and `bed` make a network out of namespaces; `actor` and `troupe` put peers into it as
processes of their own; `contenders` are whoever can average; `measuring` runs them by turns and
throws away what does not count; `results` writes down what came of it.
"""
