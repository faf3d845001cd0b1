// Questions to /api/v1 of the server that the page came from, and its stream. Where a
// token is needed, it is asked for; it goes into a header, and so the stream is read
// with fetch: an EventSource has no headers.

// A Problem is an answer that is none (RFC 9457), or no answer at all (status 0).
export class Problem extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

const tokenKey = "ctfleet-token";
let wanted = () => {}; // called where a token is needed, or another one

export const onToken = (f) => { wanted = f; };
export const setToken = (t) => sessionStorage.setItem(tokenKey, t);

async function ask(path, options = {}) {
  const token = sessionStorage.getItem(tokenKey);
  const headers = {...options.headers, ...(token ? {Authorization: `Bearer ${token}`} : {})};
  let answer;
  try {
    answer = await fetch(`/api/v1/${path}`, {...options, headers, cache: "no-store"});
  } catch (e) {
    if (options.signal?.aborted) throw e;
    throw new Problem(0, "the aggregator does not answer");
  }
  if (answer.ok) return answer;
  let detail = answer.statusText;
  try {
    detail = (await answer.json()).detail ?? detail;
  } catch { /* a proxy's own words */ }
  // An answer to a question with another token, that was given meanwhile, says nothing.
  if (answer.status === 401 && token === sessionStorage.getItem(tokenKey)) wanted(token ? "This is not the token." : "");
  throw new Problem(answer.status, detail);
}

// get asks a question. Parameters that are empty are left out.
export async function get(path, params = {}, signal = AbortSignal.timeout(10_000)) {
  const given = Object.entries(params).filter(([, v]) => v !== "" && v !== null && v !== undefined && v !== false);
  const query = new URLSearchParams(given);
  const answer = await ask(given.length ? `${path}?${query}` : path, {signal});
  return answer.json();
}

// The fleet's tick comes each second; who hears nothing for so long has no connection.
const silence = 5_000;
const firstWait = 500, longestWait = 8_000;

// follow reads the stream for ever: on(kind, data) for each event, state(up, why) when
// the connection comes and goes. After a break it goes on after the last event that it
// read. kick() ends the wait before the next attempt.
export function follow(on, state) {
  let last = "", wait = firstWait, kick = () => {};
  const read = async () => {
    const stop = new AbortController();
    let watch = setTimeout(() => stop.abort(), silence * 2);
    try {
      const answer = await ask("stream", {signal: stop.signal, headers: last ? {"Last-Event-ID": last} : {}});
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (let first = true; ; first = false) {
        const {value, done} = await reader.read();
        if (done) throw new Problem(0, "the aggregator closed the stream");
        clearTimeout(watch);
        watch = setTimeout(() => stop.abort(), silence);
        if (first) {
          wait = firstWait;
          state(true);
        }
        const blocks = (rest + value).split("\n\n");
        rest = blocks.pop();
        for (const block of blocks) {
          let kind = "", data = "";
          for (const line of block.split("\n")) {
            if (line.startsWith("id: ")) last = line.slice(4);
            else if (line.startsWith("event: ")) kind = line.slice(7);
            else if (line.startsWith("data: ")) data += line.slice(6);
          }
          if (kind) on(kind, JSON.parse(data));
        }
      }
    } catch (e) {
      state(false, e instanceof Problem ? e.message : stop.signal.aborted ? "nothing was heard for a while" : "the connection broke");
    } finally {
      clearTimeout(watch);
      stop.abort();
    }
  };
  (async () => {
    for (;;) {
      await read();
      // Some more or less, so that not all pages come back at the same moment.
      const t = wait * (0.75 + Math.random() / 2);
      wait = Math.min(2 * wait, longestWait);
      await new Promise((done) => {
        kick = done;
        setTimeout(done, t);
      });
    }
  })();
  return {kick: () => { wait = firstWait; kick(); }};
}
