/**
 * The proxy plane: `ANY /proxy/{provider}/…` and its aliases, behind the `keyguard()` door. What was signed is the only input; of
 * everything else that a client sends, only `accept` is looked at. Where a provider key goes is the operator's configuration
 * alone.
 */
import { randomUUID } from 'node:crypto';
import type { OutgoingHttpHeaders } from 'node:http';
import type { Request, RequestHandler, Response } from 'express';
import { sendProblem, verifiedRequest, type RejectionSender } from '@keyguard/adapters-express';
import { isFieldValue } from '@keyguard/core/canonical';
import { isRejected, isUnavailable, UnavailableError, UsageError } from '@keyguard/core/errors';
import type { Clock, Device, MaybePromise } from '@keyguard/core/seams';
import { systemClock } from '@keyguard/core/system';
import type { VerifiedRequest } from '@keyguard/server-verifier';
import { estimatedInput } from '../usage/estimates.ts';
import type { Cost } from '../usage/prices.ts';
import type { Admit } from './allowance.ts';
import type { Call, CallEvent } from './call-events.ts';
import { allowsModel } from './model-patterns.ts';
import { failure, sendErrorBody, sendFailure, type FailureCode } from './failures.ts';
import { createForwarder, DEFAULT_FORWARD_LIMITS, type CallEnding, type Forwarding, type ForwardLimits, type OutgoingCall } from './forward.ts';
import { limitFields, requestLimit } from './limit-fields.ts';
import type { KeyOptions, Provider, TrustedUpstream, Usage } from './provider.ts';
import { dialectOf, findRoute, type ProviderRoute } from './providers.ts';

/** A provider key, and the one place where it may be sent. */
export interface ProviderKey {
  /** `null` for the built-in demonstration. */
  readonly apiKeyId: string | null;
  readonly upstream: TrustedUpstream;
  readonly apiKey: string;
  readonly options?: KeyOptions;
}

/** Why there is a key, and it is not used. */
export interface ProviderKeyRefusal {
  readonly refusedBy: 'provider_key_expired' | 'provider_key_unplaced';
}

export interface LlmProxyLimits extends ForwardLimits {
  /** Within how many milliseconds `providerKeys` and `audit` must answer. Default 2,000. */
  readonly seamTimeoutMs: number;
}

export interface LlmProxyOptions {
  /** The key that `device` uses with the provider of that name; `null` when it may use none. Throws when it cannot tell. */
  readonly providerKeys: (device: Device, provider: string) => Promise<ProviderKey | ProviderKeyRefusal | null>;
  /** To which models `device` is held: the lists that a call must satisfy, each of them. Throws when it cannot tell. */
  readonly modelLists: (device: Device) => MaybePromise<readonly (readonly string[])[]>;
  /** MUST have appended the event durably when it resolves. See `call-events.ts` for what waits for it. */
  readonly audit: (event: CallEvent) => Promise<unknown>;
  /**
   * Resolves while the device of that key may call from that address, and rejects with a RejectedError once it may not; with
   * anything else where nobody can tell. As `verifier.recheck` does.
   */
  readonly recheck: (keyId: string, ip: string | null) => Promise<unknown>;
  /** Whether budgets have room for a call; left out where there are no budgets. See `allowance.ts`. */
  readonly admit?: Admit;
  /** What the tokens cost that a provider reported; left out where nobody asks. */
  readonly price?: (provider: string, usage: Usage) => Cost | null;
  /** When the request behind an answer began to arrive, by the monotonic clock; left out: when it was verified. */
  readonly arrivedAtMs?: (request: Request) => number;
  /** Told of what an operator must look into and no client is told: errors of the two functions above, and mistakes here. */
  readonly onFault: (error: unknown) => void;
  readonly limits?: Partial<LlmProxyLimits>;
  readonly clock?: Clock;
}

export interface LlmProxy {
  /** Mount it after `keyguard(verifier, { sendRejection })` at `/proxy` and `/v1`; what is no route of its goes to `next()`. */
  readonly handler: RequestHandler;
  /** Mount it before that door: answers what wants to become something else than HTTP, which nobody can sign, in the provider's dialect. */
  readonly refuseUpgrades: RequestHandler;
  /** Answers the verifier's refusals in the provider's dialect. */
  readonly sendRejection: RejectionSender;
  /** Ends the running calls of a device, event streams with an error event. */
  endCallsOf(deviceId: string): void;
  /**
   * Asks `recheck` of every running call, and ends those that may not go on, and those for which nobody could answer for too long;
   * event streams with an error event. To be called every half second: the latter then end some five seconds after the last news.
   */
  review(): void;
  /**
   * Stops: new calls are answered 503; running ones have `withinMs` to end by themselves, then event streams end with an error
   * event and other calls with an error. Resolves when none is left: a client that takes no last word is cut off a second later.
   */
  drain(withinMs: number): Promise<void>;
  /** Closes what is kept open to upstreams; call it after {@link drain}. */
  close(): void;
  /** For metrics. */
  usage(): { readonly runningCalls: number; readonly upstreamSockets: number; readonly keptSockets: number };
}

interface RunningCall {
  readonly deviceId: string;
  readonly keyId: string;
  readonly ip: string | null;
  /** When it was last known that the device may call, by the monotonic clock. */
  vouchedAtMs: number;
  isUnderReview: boolean;
  readonly response: Response;
  /** Resolves when the call is over and recorded; never rejects. */
  done: Promise<void>;
  end: (code: FailureCode) => void;
}

/** A verified request that has a route, and its response. */
interface Exchange {
  readonly verified: VerifiedRequest;
  readonly route: ProviderRoute;
  readonly request: Request;
  readonly response: Response;
}

// TRACE among others stays out: it would have the upstream repeat the provider key to the client.
const METHODS: ReadonlySet<string> = new Set(['GET', 'HEAD', 'POST', 'PUT', 'PATCH', 'DELETE']);
const LAST_WORDS_MS = 1000;
// Nine reviews after the last one that was answered, which may have been answered by news of a second before: so a call ends
// between five and six seconds after the last news.
const UNVOUCHED_MS = 4250;
// What keeps everyone from vouching for a device mostly keeps the ending from being written down too.
const UNVOUCHED_RECORD_MS = 250;
const MIN_EVENT_BYTES = 128 * 1024;
// A timer beyond this fires at once.
const MAX_TIMER_MS = 2 ** 31 - 1;

/** @throws UsageError `invalid_option` */
export function llmProxy(options: LlmProxyOptions): LlmProxy {
  const { providerKeys, modelLists, audit, recheck, onFault, admit = async () => null, price = () => null, arrivedAtMs = () => performance.now(), clock = systemClock } = options;
  const limits = checkLimits({ ...DEFAULT_FORWARD_LIMITS, seamTimeoutMs: 2000, ...options.limits });
  const forwarder = createForwarder(limits);
  const running = new Set<RunningCall>();
  let stopping = false;

  const append = (event: CallEvent, withinMs = limits.seamTimeoutMs): Promise<unknown> => answered('audit', withinMs, () => audit(event));

  /** Answers the call; resolves when its response is closed and its ending recorded. */
  async function serve(exchange: Exchange, control: RunningCall): Promise<void> {
    const { verified, route, request, response } = exchange;
    const { provider, rest } = route;
    const { device, method, path } = verified;
    const arrivedMs = arrivedAtMs(request);
    const rate = requestLimit(verified.rate);
    setFields(response, limitFields([rate], clock.nowMs()));
    let call: Call = { callId: randomUUID(), device, provider: provider.name, apiKeyId: null, requestBytes: verified.body.length, method, path, startedAtMs: clock.nowMs() };
    let cutBy: FailureCode | null = null;
    control.end = (code) => {
      cutBy = code;
    };

    const refuse = async (code: FailureCode, message?: string): Promise<void> => {
      const failed = failure(code, message);
      await append({ ...call, type: 'refused', code, status: failed.status });
      sendFailure(response, provider, failed);
    };
    if (!METHODS.has(method)) return refuse('method_not_allowed');
    const refusal = provider.refusal(rest, verified.query);
    if (refusal !== null) return refuse(refusal);
    const [key, lists] = await answered('provider_keys', limits.seamTimeoutMs, () => Promise.all([providerKeys(device, provider.name), modelLists(device)]));
    if (response.destroyed) return;
    if (key === null) return refuse('provider_key_missing', howToGetAKey(provider));
    if ('refusedBy' in key) return refuse(key.refusedBy);
    call = { ...call, apiKeyId: key.apiKeyId };
    const modelRefusal = lists.length === 0 ? null : modelRefusalOf(verified, route, lists);
    if (modelRefusal !== null) return refuse(modelRefusal);
    const deployment = key.options?.deployment ?? null;
    if (deployment !== null && provider.confinement?.serves(rest, deployment) !== true) return refuse('deployment_not_allowed');

    const spending = method === 'POST' ? provider.spends(rest) : 'none';
    const expectedInput = spending === 'none' ? null : estimatedInput(verified.body.length, verified.contentType);
    const admitting = admit({ callId: call.callId, device, provider, rest, spending, expectedInput, body: verified.body });
    const admission = await answered('budgets', limits.seamTimeoutMs, () => admitting).catch((error: unknown) => {
      // What is charged after all, too late for this call, is given back.
      admitting.then((late) => (late !== null && 'takeBack' in late ? late.takeBack() : undefined)).catch(() => {});
      throw error;
    });
    if (admission !== null) setFields(response, limitFields([rate, ...admission.limits], clock.nowMs()));
    if (admission !== null && 'refusedBy' in admission) {
      if (admission.retryAtMs !== null) comeAgain(response, admission.retryAtMs - clock.nowMs());
      return refuse(admission.refusedBy, admission.message);
    }
    let charge = admission?.charge ?? null;
    /** Nothing is sent after all. */
    const takeBack = async (): Promise<void> => {
      charge = null;
      await admission?.takeBack();
    };

    try {
      await append({ ...call, type: 'started' });
    } catch (error) {
      await takeBack();
      throw error;
    }
    const recordEnd = async (ending: CallEnding): Promise<void> => {
      const withinMs = ending.outcome === 'device_unvouched' ? UNVOUCHED_RECORD_MS : limits.seamTimeoutMs;
      try {
        const cost = ending.usage === null ? null : price(provider.name, ending.usage);
        await append({ ...call, ...ending, cost, charge: charge?.(ending) ?? null, expectedInput, type: 'ended', durationMs: clock.nowMs() - call.startedAtMs }, withinMs);
      } catch (error) {
        onFault(error);
      }
    };
    if (response.destroyed) {
      await takeBack();
      return recordEnd({ ...NOTHING_CAME, outcome: 'client_left', status: null });
    }
    if (cutBy !== null) {
      const failed = failure(cutBy);
      await takeBack();
      await recordEnd({ ...NOTHING_CAME, outcome: cutBy, status: failed.status });
      sendFailure(response, provider, failed);
      return;
    }
    const outgoing = outgoingCall(verified, route, key, request.headers.accept);
    let forwarding: Forwarding;
    try {
      forwarding = forwarder.forward(outgoing, response, recordEnd);
    } catch (error) {
      // Nothing was sent: for instance a stored key that no header can hold.
      await takeBack();
      await recordEnd({ ...NOTHING_CAME, outcome: 'internal_error', status: failure('internal_error').status });
      throw error;
    }
    response.setHeader('x-keyguard-overhead-ms', (performance.now() - arrivedMs).toFixed(2));
    control.end = forwarding.end;
    return forwarding.done;
  }

  /** Serves, and turns whatever goes wrong into an answer; never rejects. */
  async function serveOrFail(exchange: Exchange, control: RunningCall): Promise<void> {
    const { route, response } = exchange;
    try {
      await serve(exchange, control);
    } catch (error) {
      onFault(error);
      if (response.headersSent) response.destroy();
      else if (!response.destroyed) {
        sendFailure(response, route.provider, failure(isUnavailable(error) ? 'service_unavailable' : 'internal_error'));
      }
    } finally {
      running.delete(control);
    }
  }

  function handle(exchange: Exchange): Promise<void> {
    const { verified, request, response } = exchange;
    const control: RunningCall = {
      deviceId: verified.device.deviceId,
      keyId: verified.keyId,
      ip: request.ip ?? null,
      vouchedAtMs: performance.now(),
      isUnderReview: false,
      response,
      done: Promise.resolve(),
      end: () => {},
    };
    running.add(control);
    control.done = serveOrFail(exchange, control);
    return control.done;
  }

  async function reviewOne(call: RunningCall): Promise<void> {
    call.isUnderReview = true;
    const askedAtMs = performance.now();
    try {
      await recheck(call.keyId, call.ip);
      call.vouchedAtMs = askedAtMs;
    } catch (error) {
      if (isRejected(error)) call.end('device_cut_off');
      else if (performance.now() - call.vouchedAtMs >= UNVOUCHED_MS) call.end('device_unvouched');
    } finally {
      call.isUnderReview = false;
    }
  }

  return {
    handler(request, response, next) {
      const verified = verifiedRequest(request);
      const route = findRoute(verified.path);
      const dialect = route?.provider ?? dialectOf(verified.path);
      if (dialect === null) next();
      else if (stopping) {
        response.setHeader('connection', 'close');
        sendFailure(response, dialect, failure('service_stopping'));
      } else if (route === null) sendFailure(response, dialect, failure('route_unknown'));
      else return handle({ verified, route, request, response });
    },

    refuseUpgrades(request, response, next) {
      const dialect = request.headers.upgrade === undefined ? null : dialectOf(request.originalUrl.split('?', 1)[0]!);
      // An upgrade to a newer HTTP is an offer, which may be passed over.
      if (dialect === null || !/websocket/i.test(request.headers.upgrade!)) next();
      else sendFailure(response, dialect, failure('upgrade_unsupported'));
    },

    sendRejection,

    endCallsOf(deviceId) {
      for (const call of running) if (call.deviceId === deviceId) call.end('device_cut_off');
    },

    review() {
      for (const call of running) if (!call.isUnderReview) void reviewOne(call);
    },

    async drain(withinMs) {
      stopping = true;
      const allDone = (): Promise<unknown> => Promise.all([...running].map(({ done }) => done));
      await atMost(withinMs, allDone());
      for (const call of running) call.end('service_stopping');
      await atMost(LAST_WORDS_MS, allDone());
      for (const { response } of running) response.destroy();
      await allDone();
    },

    close: () => forwarder.close(),

    usage() {
      const { used, kept } = forwarder.sockets();
      return { runningCalls: running.size, upstreamSockets: used, keptSockets: kept };
    },
  };
}

const NOTHING_CAME = { responseBytes: 0, isStream: false, usage: null } as const;
// Clients wait so long by themselves; for the end of a day they are told not to.
const WAITED_FOR_MS = 60_000;

function setFields(response: Response, fields: OutgoingHttpHeaders): void {
  for (const name in fields) response.setHeader(name, fields[name]!);
}

function comeAgain(response: Response, inMs: number): void {
  response.setHeader('retry-after', String(Math.max(1, Math.ceil(inMs / 1000))));
  if (inMs > WAITED_FOR_MS) response.setHeader('x-should-retry', 'false');
}

function checkLimits(limits: LlmProxyLimits): LlmProxyLimits {
  for (const [name, value] of Object.entries(limits)) {
    const [min, max] = name === 'maxEventBytes' ? [MIN_EVENT_BYTES, Number.MAX_SAFE_INTEGER] : [1, MAX_TIMER_MS];
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new UsageError('invalid_option', `${name} must be an integer from ${min} to ${max}.`);
    }
  }
  return Object.freeze(limits);
}

/** Why a call is not one of those to which `lists` hold it, or `null`. */
function modelRefusalOf(verified: VerifiedRequest, { provider, rest }: ProviderRoute, lists: readonly (readonly string[])[]): FailureCode | null {
  const models = provider.models(rest, verified);
  switch (models.kind) {
    case 'none':
      return null;
    case 'unclear':
      return 'model_ambiguous';
    case 'elsewhere':
      return 'model_not_allowed';
    case 'named':
      return models.names.every((name) => lists.every((patterns) => allowsModel(patterns, name))) ? null : 'model_not_allowed';
  }
}

/** Everything that goes to the provider, and nothing that is not named here. */
function outgoingCall(
  { method, query, contentType, coveredHeaders, body }: VerifiedRequest,
  { provider, rest }: ProviderRoute,
  { upstream, apiKey, options }: ProviderKey,
  accept: string | undefined,
): OutgoingCall {
  const headers: Record<string, string> = {
    accept: accept !== undefined && isFieldValue(accept) ? accept : '*/*',
    // So that events can be told apart and an error event can follow them.
    'accept-encoding': 'identity',
    'user-agent': 'keyguard',
  };
  if (contentType !== null) headers['content-type'] = contentType;
  for (const [name, value] of coveredHeaders) if (provider.requestHeaders.has(name)) headers[name] = value;
  Object.assign(headers, provider.authorization(apiKey));
  const asked = provider.query(query);
  const apiVersion = options?.apiVersion ?? null;
  const versioned = apiVersion === null ? asked : (provider.confinement?.versioned(rest, asked, apiVersion) ?? asked);
  return { provider, rest, query: versioned, upstream, method, headers, body };
}

function howToGetAKey({ title, keyVariable }: Provider): string {
  return (
    `This device's project has no ${title} key. An administrator can store one for the project in KeyGuard, ` +
    `or the operator can set ${keyVariable} and start the service again.`
  );
}

const sendRejection: RejectionSender = (answer, request, response) => {
  const provider = dialectOf(request.originalUrl.split('?', 1)[0]!);
  if (provider === null) {
    sendProblem(answer, request, response);
    return;
  }
  const { status, problem } = answer;
  // The same request is refused again, but for a body that came too slowly and a limit that passes.
  if (status < 500 && status !== 408 && status !== 429) response.setHeader('x-should-retry', 'false');
  sendErrorBody(response, provider, { status, code: problem.code, message: problem.detail });
};

/** What a seam answers; whatever goes wrong, an answer that does not come included, is an UnavailableError. */
function answered<T>(seam: string, withinMs: number, ask: () => Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => reject(new UnavailableError(seam, `${seam} did not answer within ${withinMs} ms.`)), withinMs);
    const fail = (cause: unknown): void => {
      clearTimeout(timer);
      reject(isUnavailable(cause) ? cause : new UnavailableError(seam, `${seam} failed.`, { cause }));
    };
    try {
      ask().then((answer) => {
        clearTimeout(timer);
        resolve(answer);
      }, fail);
    } catch (error) {
      fail(error);
    }
  });
}

/** Resolves when `work` does, at the latest after `ms`. */
async function atMost(ms: number, work: Promise<unknown>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise((resolve) => {
    timer = setTimeout(resolve, ms);
  });
  await Promise.race([work, late]);
  clearTimeout(timer);
}
