# Four images from a checkout:
#
#   docker build --target robot -t rql-deploy:robot .   the client and the control loop (base install)
#   docker build --target serve -t rql-deploy:serve .   the server; no torch
#   docker build --target train -t rql-deploy:train .   training and export
#   docker build --target sim   -t rql-deploy:sim .     all of it, with the simulators
#
# PYTHON_IMAGE  the base: a full version, and best with the digest that you have checked
# TORCH_INDEX   where torch comes from; its default is the build without CUDA
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY rql_deploy ./rql_deploy
COPY train ./train
COPY export ./export
COPY runtime ./runtime
COPY sim ./sim
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

# The locked versions, as everything is tested with them.
FROM wheel AS robot-packages
COPY requirements.lock requirements-no-deps.lock ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --constraint requirements.lock /wheels/rql_deploy-*.whl

FROM robot-packages AS serve-packages
RUN /opt/venv/bin/pip install --no-cache-dir --constraint requirements.lock "rql-deploy[serve]"

FROM serve-packages AS train-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/venv/bin/pip install --no-cache-dir --constraint requirements.lock \
    --extra-index-url "${TORCH_INDEX}" "rql-deploy[train,hub,arrow,zarr,ros2]"

# As `make setup` does: robosuite without what it declares for its scripts.
FROM train-packages AS sim-packages
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN /opt/venv/bin/pip install --no-cache-dir --extra-index-url "${TORCH_INDEX}" --requirement requirements.lock \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --requirement requirements-no-deps.lock

FROM ${PYTHON_IMAGE} AS runtime
# Volumes take over the owner of these folders.
RUN groupadd --gid 10001 rql \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin rql \
    && install --directory --owner 10001 --group 10001 /bundle /keys /recordings /work
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
USER 10001:10001
ENTRYPOINT ["rql-deploy"]
CMD ["--help"]

FROM runtime AS robot
COPY --from=robot-packages /opt/venv /opt/venv

FROM runtime AS serve
COPY --from=serve-packages /opt/venv /opt/venv
EXPOSE 5555 9100
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:9100/readyz', timeout=2)"]
CMD ["serve", "/bundle", "--bind", "tcp://0.0.0.0:5555", "--keys", "/keys", "--metrics", "127.0.0.1:9100"]

FROM runtime AS train
COPY --from=train-packages /opt/venv /opt/venv

FROM runtime AS sim
USER 0:0
# MuJoCo draws with EGL.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libegl1 libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*
ENV MUJOCO_GL=egl
USER 10001:10001
COPY --from=sim-packages /opt/venv /opt/venv
