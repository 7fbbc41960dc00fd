"""The optimizer over its backends: assigns parameters to backends, runs the stages of a step, writes state dicts.

backends      the choice of a backend for each parameter
members       the parameters, borrowed
watching      a cheap check whether a parameter's storage was replaced
parameters    all of an optimizer's parameters, and the parts of the backends that update them
gradients     the gradients of a step, in the order of the parameters
scaling       the arguments of a step that treat the gradients
stepping      the stages of a step: make ready, plan, check, launch
measuring     steps that measure their gradients first
accumulation  steps with accumulated gradients
state_dicts   state dicts in PyTorch's nesting
pickling      the contents of an optimizer for copy.deepcopy and pickle

May import everything in the library but `rows` and the public interface.
"""
