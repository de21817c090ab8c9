FROM kiln.test/busybox:latest
RUN echo other > /o
