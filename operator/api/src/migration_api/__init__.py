"""The CRD models and the wire models that operator and agents share."""
