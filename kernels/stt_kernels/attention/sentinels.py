"""The numbers that stand for what is masked or missing, the same in every tiled backend."""

MASKED = -1e30  # finite: a row of nothing but masked pairs makes no NaN; exp of it is exactly 0
LOWEST = -1e20  # no maximum is taken to be lower, so that what is masked stays far below it
NOTHING = 1e30  # the log-sum-exp of a query with no key: exp(logit - it) is exactly 0
