/**
 * A client of Tollkeeper's holds, for Node 20 and later, Deno, Bun and browsers. It needs `fetch` alone.
 *
 * A request whose answer is lost is sent again: taking a hold has an `Idempotency-Key`, and settling twice is settling
 * once. What holds more (`extend` with `more`) is sent once.
 */

const PATH = "/.tollkeeper/holds";
/** A request is sent so often, with such a pause between, and waits so long for its answer. */
const TRIES_MAX = 4;
const PAUSE_MS = 200;
const TIMEOUT_MS = 10_000;

/** Tokens and units are numbers, money is a text. */
export type Amount = number | string;

export interface HoldRequest {
  model?: string;
  user?: string;
  /** One of these three says how much. */
  max_tokens?: number;
  amount?: Amount;
  request?: Record<string, unknown>;
  ttl_s?: number;
  run?: string;
}

export interface Use {
  usage?: Record<string, unknown>;
  cost?: string;
  units?: number;
  status?: number;
}

export interface Settlement {
  id: string;
  status: number;
  charged: boolean;
  tokens: number;
  credits: number;
  units: number;
  cost: string | null;
  currency: string | null;
}

export interface HoldsOptions {
  timeoutMs?: number;
  pauseMs?: number;
  fetch?: typeof globalThis.fetch;
}

interface Taken {
  id: string;
  unit: string;
  held: Amount;
  remaining: Amount | null;
  expires_at: string;
}

interface Asked {
  body?: unknown;
  headers?: Record<string, string>;
  tries?: number;
}

/** A hold was refused: by which reason, and in how many seconds another try may help (null: unknown). */
export class HoldRefused extends Error {
  readonly status: number;
  readonly reason: string;
  readonly detail: string;
  readonly retryAfterS: number | null;

  constructor(status: number, reason: string, detail: string, retryAfterS: number | null) {
    super(`${status} ${reason}: ${detail}`);
    this.name = "HoldRefused";
    this.status = status;
    this.reason = reason;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
  }
}

/** Holds at one gateway, by one API key. */
export class Holds {
  readonly #url: string;
  readonly #key: string;
  readonly #timeoutMs: number;
  readonly #pauseMs: number;
  readonly #fetch: typeof globalThis.fetch;

  constructor(url: string, key: string, options: HoldsOptions = {}) {
    if (!/^https?:\/\/[^/]/.test(url)) throw new TypeError(`the gateway's URL must be http:// or https://, not ${url}`);
    this.#url = url.replace(/\/+$/, "") + PATH;
    this.#key = key;
    this.#timeoutMs = options.timeoutMs ?? TIMEOUT_MS;
    this.#pauseMs = options.pauseMs ?? PAUSE_MS;
    this.#fetch = options.fetch ?? ((input, init) => globalThis.fetch(input, init));
  }

  /** Take a hold; `HoldRefused` where a limit refuses it. The key of the request is one of its own, unless it is said. */
  async take(service: string, said: HoldRequest = {}, idempotencyKey: string = crypto.randomUUID()): Promise<Hold> {
    const headers = { "idempotency-key": idempotencyKey };
    const taken = await this.ask<Taken>("POST", "", { body: { service, ...said }, headers });
    return new Hold(this, taken);
  }

  /** Do some work under a hold; at its end the hold is released, unless it was settled. */
  async with<T>(service: string, said: HoldRequest, work: (hold: Hold) => Promise<T>): Promise<T> {
    const hold = await this.take(service, said);
    try {
      return await work(hold);
    } finally {
      if (!hold.isOver) await hold.release();
    }
  }

  /** Ask, again while nothing is known of the answer; `HoldRefused` for any other answer than 2xx. */
  async ask<T>(method: string, path: string, { body, headers = {}, tries = TRIES_MAX }: Asked = {}): Promise<T> {
    for (let left = tries - 1; ; left -= 1) {
      try {
        const answer = await this.#fetch(this.#url + path, {
          method,
          headers: { authorization: `Bearer ${this.#key}`, "content-type": "application/json", ...headers },
          body: body === undefined ? undefined : JSON.stringify(body),
          signal: AbortSignal.timeout(this.#timeoutMs),
          redirect: "error",
        });
        const found = objectOf(await answer.text());
        if (answer.status < 300 && (answer.status === 204 || Object.keys(found).length > 0)) return found as T;
        if (answer.status !== 503 || left <= 0) throw refusal(answer, found);
      } catch (error) {
        if (error instanceof HoldRefused || left <= 0) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, this.#pauseMs));
    }
  }
}

/** One hold: how much, what remained when it was taken, and when it ends. */
export class Hold {
  readonly id: string;
  readonly unit: string;
  held!: Amount;
  remaining!: Amount | null;
  expiresAt!: Date;
  /** Whether it was settled or released. */
  isOver = false;
  readonly #holds: Holds;

  constructor(holds: Holds, taken: Taken) {
    this.#holds = holds;
    this.id = taken.id;
    this.unit = taken.unit;
    this.#learn(taken);
  }

  /** Give it so many seconds from now, and hold `more` of its unit for it. */
  async extend(ttlS = 60, more?: Amount): Promise<this> {
    const tries = more === undefined ? TRIES_MAX : 1; // it would hold more twice
    this.#learn(await this.#holds.ask<Taken>("POST", `/${this.id}/extend`, { body: { ttl_s: ttlS, more }, tries }));
    return this;
  }

  /** Charge what was used; what it came to. */
  async settle(use: Use): Promise<Settlement> {
    const told = await this.#holds.ask<Settlement>("POST", `/${this.id}/settle`, { body: { status: 200, ...use } });
    this.isOver = true;
    return told;
  }

  /** Give it back: it costs nothing. */
  async release(): Promise<void> {
    await this.#holds.ask("DELETE", `/${this.id}`);
    this.isOver = true;
  }

  #learn(told: Taken): void {
    this.held = told.held;
    this.remaining = told.remaining;
    this.expiresAt = new Date(told.expires_at);
  }
}

function refusal(answer: Response, found: Record<string, unknown>): HoldRefused {
  const after = answer.headers.get("retry-after") ?? "";
  const reason = answer.headers.get("x-tollkeeper-reason") ?? "";
  return new HoldRefused(answer.status, reason, String(found.detail ?? ""), /^\d+$/.test(after) ? Number(after) : null);
}

/** The object of an answer; an empty one where something else answered in the gateway's place. */
function objectOf(text: string): Record<string, unknown> {
  try {
    const found: unknown = JSON.parse(text);
    return typeof found === "object" && found !== null && !Array.isArray(found) ? (found as Record<string, unknown>) : {};
  } catch {
    return {};
  }
}
