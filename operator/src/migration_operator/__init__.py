"""The controller: kopf handlers, observe, plan, act."""
