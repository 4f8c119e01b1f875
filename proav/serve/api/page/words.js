// What the page says about a job and a model, in one place: names, facts, times. Text only.

const TASKS = {
  joint: {
    name: "Picture and sound",
    hint: "The model makes the picture and its sound together.",
    accept: "",
  },
  a2v: {
    name: "Picture to your sound",
    hint: "You give the sound; the model makes a picture to it.",
    accept: "audio/*,video/*",
    file: "Your sound",
  },
  v2a: {
    name: "Sound to your picture",
    hint: "You give the picture; the model makes the sound to it.",
    accept: "video/*",
    file: "Your video",
  },
  i2av: {
    name: "From a first picture",
    hint: "You give an image; the model makes a clip that begins with it.",
    accept: "image/*,video/*",
    file: "Your image",
    takes: "An image, or the first picture of a video.",
  },
  continue: {
    name: "A clip goes on",
    hint: "You give a clip; the model makes what comes after it.",
    accept: "video/*",
    file: "Your clip",
    takes: "The whole clip is kept; the model goes on from its end.",
  },
  inpaint: {
    name: "Make a part anew",
    hint: "You give a clip; the model makes a part of it anew.",
    accept: "video/*",
    file: "Your clip",
  },
};

const STREAMS = { both: "picture and sound", video: "picture", audio: "sound" };

export const taskWords = (task) => TASKS[task] ?? { name: task, hint: "", accept: "", file: "File" };

/** A name of the interface as a heading: "first_words" becomes "First words". */
export const wordsOf = (name) => `${name[0].toUpperCase()}${name.slice(1)}`.replaceAll("_", " ");

/** The labels of a clip; without one its text. */
export const nameOf = (job) =>
  job.label?.split(";").join(", ") || Object.values(job.texts ?? {}).join(", ") || "No label";

export function decimals(value, places = 2) {
  return Number(Number(value).toFixed(places)).toString();
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  if (whole < 90) return `${whole} s`;
  return `${Math.floor(whole / 60)} min ${whole % 60} s`;
}

/** What a job waits for, or how it ended. */
export function stateOf(job) {
  if (job.status === "in_progress") return "Making";
  if (job.status !== "queued") return { completed: "Finished", failed: "Failed" }[job.status] ?? job.status;
  const before = job.queue_position;
  if (before == null) return "Starting";
  if (before === 0) return "Waiting: next";
  return `Waiting: ${before} before it`;
}

/** When a job was asked for: only the time of day if that was today. */
export function whenOf(job) {
  const then = new Date(1000 * job.created_at);
  const time = { hour: "2-digit", minute: "2-digit" };
  const today = then.toDateString() === new Date().toDateString();
  return then.toLocaleString(undefined, today ? time : { day: "numeric", month: "short", ...time });
}

const UNLISTED = {
  solver: "Solver",
  schedule_shift: "Shift of times",
  guidance_interval: "Interval of guidance",
};

/** A job's settings that the form has no field for, if they are not the model's defaults.
 * {name in a request: text}. Jobs of older servers may lack them. */
export function unlisted(job, model) {
  const differs = (name) => job[name] != null && String(job[name]) !== String(model[name].default);
  const names = Object.keys(UNLISTED).filter(differs);
  return Object.fromEntries(names.map((name) => [name, String(job[name])]));
}

/** [[heading, value]] of such settings. */
export const unlistedFacts = (settings) =>
  Object.entries(settings).map(([name, value]) => [UNLISTED[name], value.replace(",", " to ")]);

/** A server's message in the words of the page: programs call the same things by other names. */
export function plain(message) {
  const words = message
    .replace(/^input_reference: */, "")
    .replace(/\b(the )?input_reference\b/g, "the file")
    .replace(/\baudio_guidance_scale\b/g, "guidance of the sound")
    .replace(/\bguidance_scale\b/g, "guidance")
    .replace(/\btask=(\w+)/g, (_, task) => `“${taskWords(task).name}”`);
  return `${words[0].toUpperCase()}${words.slice(1)}${/[.!?]$/.test(words) ? "" : "."}`;
}

/** A server's message without its advice on when to try again: the page counts the seconds down itself. */
export function refusalWords(message) {
  return plain(message.replace(/[;,.]\s*try again.*$/i, ""));
}

export function factsOf(job, model) {
  const facts = [
    ["Seed", String(job.seed)],
    ["Steps", String(job.steps)],
    ["Guidance", decimals(job.guidance_scale)],
  ];
  if (job.audio_guidance_scale != null)
    facts.push(["Guidance of the sound", decimals(job.audio_guidance_scale)]);
  facts.push(...unlistedFacts(unlisted(job, model)));
  facts.push(["Made", taskWords(job.task).name.toLowerCase()], ["Asked for", whenOf(job)]);
  for (const [name, text] of Object.entries(job.texts ?? {})) facts.push([wordsOf(name), text]);
  if (job.span)
    facts.push(["Part", `${decimals(job.span[0])} to ${decimals(job.span[1])} s, ${STREAMS[job.stream]}`]);
  if (job.num_frames != null) facts.push(["Length", `${decimals(job.seconds)} s`]);
  else if (job.num_windows > 1) facts.push(["Goes on", `${job.num_windows} times`]);
  if (job.status === "completed" && job.seconds_taken != null)
    facts.push(["Took", duration(job.seconds_taken)]);
  return facts;
}

export function modelSentence(model) {
  const [width, height] = model.size.split("x");
  const rate = decimals(model.sample_rate / 1000, 1);
  return (
    `Makes clips with picture and sound: ${model.num_frames} frames of ${width}×${height} pixels ` +
    `at ${model.fps} fps, ${decimals(model.seconds)} seconds, with sound at ${rate} kHz.`
  );
}

export function modelDetails(model) {
  const trained =
    model.clips_trained == null
      ? ""
      : `, trained on ${Number(model.clips_trained).toLocaleString("en")} clips`;
  return `Checkpoint ${String(model.checkpoint).slice(0, 16)}${trained}.`;
}

/** The file name of a downloaded clip. */
export function fileName(job) {
  const label =
    nameOf(job)
      .toLowerCase()
      .replace(/[^\p{L}\p{N}]+/gu, "-")
      .slice(0, 60)
      .replace(/^-|-$/g, "") || "clip";
  return `${label}-seed-${job.seed}.mp4`;
}
