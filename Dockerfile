# The serving image: no torch, no compiler, not root. Snapshots are mounted at /snapshots.
#   docker build -t hfh . && docker run -p 8000:8000 -v "$PWD/var:/snapshots:ro" hfh
FROM python:3.11-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
COPY . /src
RUN /src/deploy/build_image.sh /src /opt/hfh

FROM python:3.11-slim
COPY --from=build /opt/hfh /opt/hfh
RUN useradd --system --no-create-home --uid 10001 hfh
USER 10001
ENV PATH=/opt/hfh/bin:$PATH HFH_HOST=0.0.0.0 HFH_PORT=8000
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
  ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/readyz', timeout=2)"]
ENTRYPOINT ["hfh", "serve"]
CMD ["/snapshots"]
