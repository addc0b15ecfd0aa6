import pytest
from tests.serve.gateways.dialects import ALL, Dialect


@pytest.fixture(params=ALL, ids=lambda dialect: dialect.name)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    return request.param
