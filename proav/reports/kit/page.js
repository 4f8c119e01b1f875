"use strict";
// A line over every spectrogram shows where its video is; a click on the spectrogram goes there.
// Pairs of videos play in step.
(() => {
  const players = [...document.querySelectorAll(".player")]
    .map((box) => ({
      video: box.querySelector("video"),
      strip: box.querySelector(".strip"),
      line: box.querySelector(".playhead"),
    }))
    .filter((player) => player.video);
  const pairs = [...document.querySelectorAll(".pair")].map((box) => ({
    videos: [...box.querySelectorAll("video")],
    buttons: [...box.querySelectorAll("button")],
  }));
  const pairOf = (video) => pairs.find((pair) => pair.videos.includes(video));

  const axes = (player) => ({
    left: +player.strip.dataset.left,
    width: +player.strip.dataset.width,
    seconds: +player.strip.dataset.seconds,
  });

  function drawLine(player) {
    if (!player.strip) return;
    const { left, width, seconds } = axes(player);
    const share = Math.min(1, player.video.currentTime / seconds);
    player.line.style.left = `${100 * (left + width * share)}%`;
    player.line.style.opacity = player.video.currentTime > 0 || !player.video.paused ? 1 : 0;
  }

  function follow(player) {
    drawLine(player);
    const pair = pairOf(player.video);
    if (pair && pair.together && player.video === pair.videos[0]) {
      const drift = Math.abs(pair.videos[1].currentTime - player.video.currentTime);
      if (drift > 0.08 && drift < player.video.duration / 2)
        pair.videos[1].currentTime = player.video.currentTime;
    }
    if (!player.video.paused) requestAnimationFrame(() => follow(player));
  }

  function stop(pair) {
    pair.together = false;
    pair.videos.forEach((video) => {
      video.pause();
      video.muted = false;
    });
    pair.buttons.forEach((button) => button.setAttribute("aria-pressed", "false"));
  }

  for (const player of players) {
    const { video, strip } = player;
    video.addEventListener("play", () => {
      const mine = pairOf(video);
      for (const pair of pairs) if (pair.together && pair !== mine) stop(pair);
      for (const other of players)
        if (other.video !== video && !(mine && mine.together && mine.videos.includes(other.video)))
          other.video.pause();
      follow(player);
    });
    video.addEventListener("pause", () => {
      const pair = pairOf(video);
      if (pair && pair.together && !video.seeking) stop(pair);
    });
    for (const event of ["seeked", "timeupdate"]) video.addEventListener(event, () => drawLine(player));
    if (strip)
      strip.addEventListener("click", (event) => {
        const { left, width, seconds } = axes(player);
        const box = strip.getBoundingClientRect();
        const share = ((event.clientX - box.left) / box.width - left) / width;
        video.currentTime = Math.min(0.999, Math.max(0, share)) * seconds;
      });
  }

  for (const pair of pairs)
    pair.buttons.forEach((button, heard) =>
      button.addEventListener("click", () => {
        const wasOn = button.getAttribute("aria-pressed") === "true";
        stop(pair);
        if (wasOn) return;
        pair.together = true;
        button.setAttribute("aria-pressed", "true");
        pair.videos.forEach((video, side) => {
          video.muted = side !== heard;
          video.currentTime = 0;
        });
        pair.videos.forEach((video) => video.play().catch(() => stop(pair)));
      }),
    );
})();
