// Requests to the server that the page comes from.

let token = sessionStorage.getItem("token") ?? "";

/** An answer of the server that is no success: its status, its code and its message. */
export class ServerError extends Error {
  constructor(status, code, message) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Use another token, until the tab is closed. */
export function useToken(text) {
  token = text;
  sessionStorage.setItem("token", text);
}

/** Return the models of the server, the default one first. */
export async function listModels() {
  return (await request("v1/models", {})).models;
}

/**
 * Detect objects in a file. While the server is busy, the request is repeated.
 * @returns {Promise<{model: string, width: number, height: number, detections: object[]}>}
 */
export async function detect(file, model, score) {
  const query = new URLSearchParams({ model, score: String(score) });
  for (let attempt = 0; ; attempt++) {
    try {
      const headers = { "Content-Type": "application/octet-stream", Accept: "application/json" };
      return await request(`v1/detect?${query}`, { method: "POST", body: file, headers });
    } catch (error) {
      const busy = error instanceof ServerError && (error.status === 429 || error.status === 503);
      if (!busy || attempt >= 5) {
        throw error;
      }
      await new Promise((resume) => setTimeout(resume, 1000 * 2 ** attempt));
    }
  }
}

async function request(path, options) {
  const headers = { ...options.headers };
  if (token) {
    headers.Authorization = `Bearer ${token}`;
  }
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new ServerError(0, "unreachable", "the server cannot be reached");
  }
  if (answer.ok) {
    return answer.json();
  }
  const content = await answer.json().catch(() => ({}));
  const error = content.error ?? { code: "unknown", message: `the server answered ${answer.status}` };
  throw new ServerError(answer.status, error.code, error.message);
}
