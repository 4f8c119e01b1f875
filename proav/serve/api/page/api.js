// The server's HTTP interface, as the page needs it. No state; nothing here touches the page.

const BASE = new URL("../v1/", import.meta.url);

/** The server refused.
 * `message` is for people, `param` the wrong field or null, `retryAfter` in seconds or null. */
export class Refusal extends Error {
  constructor(status, { message, param = null, code = null }, retryAfter) {
    super(message);
    Object.assign(this, { status, param, code, retryAfter });
  }
}

/** The server did not answer, or something else answered in its place. */
export class Unreachable extends Error {}

async function ask(path, options) {
  let response;
  try {
    response = await fetch(new URL(path, BASE), { cache: "no-store", ...options });
  } catch (error) {
    throw new Unreachable(error.message);
  }
  const body = await response.json().catch(() => null); // a proxy's page, or an answer that was cut off
  if (response.ok && body) return body;
  if (!body?.error?.message) throw new Unreachable(`status ${response.status}`);
  const seconds = Number(response.headers.get("Retry-After"));
  throw new Refusal(response.status, body.error, seconds > 0 ? Math.ceil(seconds) : null);
}

export async function loadModel() {
  const model = (await ask("models")).data[0];
  return { ...model, seconds: Number(model.seconds) };
}

/** Up to `count` jobs, newest first, and whether the server has more. */
export async function listJobs(count) {
  const jobs = [];
  let more = true;
  while (more && jobs.length < count) {
    const query = new URLSearchParams({ limit: Math.min(100, count - jobs.length), order: "desc" });
    if (jobs.length) query.set("after", jobs.at(-1).id);
    const page = await ask(`videos?${query}`);
    jobs.push(...page.data);
    more = page.has_more && page.data.length > 0;
  }
  return { jobs, more };
}

export const createJob = (form) => ask("videos", { method: "POST", body: form });
export const loadJob = (id) => ask(`videos/${encodeURIComponent(id)}`);
export const deleteJob = (id) => ask(`videos/${encodeURIComponent(id)}`, { method: "DELETE" });

/** Address of a finished job's "video", "thumbnail", "spritesheet" or "spectrogram". */
export function contentUrl(id, variant) {
  const url = new URL(`videos/${encodeURIComponent(id)}/content`, BASE);
  if (variant !== "video") url.searchParams.set("variant", variant);
  return url.href;
}

export const isActive = (job) => job.status === "queued" || job.status === "in_progress";
