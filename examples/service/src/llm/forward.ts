/**
 * Hands one call on to a trusted upstream and its answer back, byte by byte as it comes. It adds nothing to a request but what the
 * caller of this file has put together, follows no redirect and repeats nothing: a call may cost money, and only its sender knows
 * whether it may be made twice.
 *
 * On `node:http` with a keep-alive agent, not on undici: measured side by side it carries more calls, its first byte is sooner,
 * and each socket and each phase of a call is in our hands. Global `fetch` would cost three quarters of the throughput.
 *
 * One promise is kept on every path: the response ends properly only when the answer was whole. A broken event stream ends with an
 * error event in the provider's form, because the official SDKs take a stream that merely ends for a whole one; any other
 * broken answer is cut, so that its length or its missing last chunk tells.
 */
import http, { type ClientRequest, type IncomingMessage, type OutgoingHttpHeaders, type ServerResponse } from 'node:http';
import https from 'node:https';
import type { Socket } from 'node:net';
import type { Bytes } from '@keyguard/core/seams';
import { failure, sendFailure, type FailureCode } from './failures.ts';
import { loopbackOnly } from './loopback.ts';
import { eventReader, jsonReader, type AnswerReader } from './metering.ts';
import type { Meter, Provider, TrustedUpstream, Usage } from './provider.ts';
import { eventGate, type EventGate } from './sse.ts';

export interface ForwardLimits {
  /** For a connection, TLS included. Default 10,000. */
  readonly connectTimeoutMs: number;
  /** From the connection to the head of the answer; an answer that is not streamed has its head at its end. Default 600,000. */
  readonly headersTimeoutMs: number;
  /** Without a byte from the upstream, or without the client taking one. Default 120,000. */
  readonly idleTimeoutMs: number;
  /** For the whole call, however busy. Default 3,600,000. */
  readonly callTimeoutMs: number;
  /** The longest server-sent event, and so the longest line: generated images come in one. At least 128 KiB, default 16 MiB. */
  readonly maxEventBytes: number;
}

export const DEFAULT_FORWARD_LIMITS: ForwardLimits = Object.freeze({
  connectTimeoutMs: 10_000,
  headersTimeoutMs: 600_000,
  idleTimeoutMs: 120_000,
  callTimeoutMs: 3_600_000,
  maxEventBytes: 16 * 1024 * 1024,
});

// Below the five seconds after which common servers close an idle connection: a call on a dying one would fail for nothing.
const UNUSED_SOCKET_MS = 4000;

/** Headers of an answer that mean the same with every provider. */
const SHARED_RESPONSE_HEADERS: ReadonlySet<string> = new Set([
  'accept-ranges',
  'content-disposition',
  'content-language',
  'content-length',
  'content-range',
  'content-type',
  'retry-after',
]);

/** A call as it goes to the upstream: every part made from trusted configuration and from what was signed. */
export interface OutgoingCall {
  readonly provider: Provider;
  /** The path below the upstream's base, without a slash at its start; within the protocol's grammar. */
  readonly rest: string;
  /** Without the question mark. */
  readonly query: string;
  readonly upstream: TrustedUpstream;
  readonly method: string;
  /** Complete but for what the connection itself needs. */
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Bytes;
}

export type CallOutcome = 'completed' | 'client_left' | FailureCode;

/** How a call ended. */
export interface CallEnding {
  readonly outcome: CallOutcome;
  /** The status that the client was answered; `null` when it left before. */
  readonly status: number | null;
  /** Bytes of the provider's body that were handed on. */
  readonly responseBytes: number;
  /** Whether they are server-sent events. */
  readonly isStream: boolean;
  /** What the provider reported so far; `null` where no answer of it was read. */
  readonly usage: Usage | null;
}

/** A call on its way. */
export interface Forwarding {
  /** Resolves when the response is closed and its ending recorded; never rejects. */
  readonly done: Promise<void>;
  /** Ends the call now as a failure of that code. Without effect on one that has its ending already. */
  end(code: FailureCode): void;
}

export interface Forwarder {
  /**
   * Hands `call` on and answers `response`, whose head MUST NOT have been sent. `recordEnd` is awaited before a response ends
   * by itself, and MUST NOT reject.
   */
  forward(call: OutgoingCall, response: ServerResponse, recordEnd: (ending: CallEnding) => Promise<void>): Forwarding;
  /** Connections to upstreams: those that carry a call, and those kept for the next. */
  sockets(): { readonly used: number; readonly kept: number };
  /** Closes the connections that are kept. */
  close(): void;
}

export function createForwarder(limits: ForwardLimits): Forwarder {
  const options = { keepAlive: true, noDelay: true, timeout: UNUSED_SOCKET_MS } as const;
  const agents = { plain: new http.Agent({ ...options, lookup: loopbackOnly } as http.AgentOptions), secure: new https.Agent(options) };
  const count = (lists: NodeJS.ReadOnlyDict<unknown[]>): number =>
    Object.values(lists).reduce((sum, list) => sum + (list?.length ?? 0), 0);

  function open({ upstream, method, rest, query, headers, body }: OutgoingCall): ClientRequest {
    const request = (upstream.secure ? https : http).request({
      agent: upstream.secure ? agents.secure : agents.plain,
      host: upstream.hostname,
      port: upstream.port,
      method,
      // Put together, never resolved: no path of a client's can become a host.
      path: `${upstream.basePath}/${rest}${query === '' ? '' : `?${query}`}`,
      headers: {
        host: upstream.authority,
        ...headers,
        ...(body.length > 0 || (method !== 'GET' && method !== 'HEAD') ? { 'content-length': body.length } : {}),
      },
    });
    request.end(body);
    return request;
  }

  return {
    forward: (call, response, recordEnd) => forwardOne(limits, call, open(call), response, recordEnd),
    sockets: () => ({
      used: count(agents.plain.sockets) + count(agents.secure.sockets),
      kept: count(agents.plain.freeSockets) + count(agents.secure.freeSockets),
    }),
    close(): void {
      agents.plain.destroy();
      agents.secure.destroy();
    },
  };
}

function forwardOne(
  limits: ForwardLimits,
  { provider, rest, upstream }: OutgoingCall,
  outgoing: ClientRequest,
  response: ServerResponse,
  recordEnd: (ending: CallEnding) => Promise<void>,
): Forwarding {
  let resolve: () => void;
  const done = new Promise<void>((resolveDone) => {
    resolve = resolveDone;
  });
  let incoming: IncomingMessage | undefined;
  let gate: EventGate | undefined;
  let meter: Meter | undefined;
  let reader: AnswerReader | undefined;
  let connected = false;
  let responseBytes = 0;
  let knownBytes = Number.NaN;
  // The last bytes of an answer of known length: with them it ends, and so they wait for the record.
  let lastBytes: Buffer | undefined;
  // Set once, by whatever ends the call first; everything later is its echo.
  let recorded: Promise<void> | undefined;

  const wholeCall = setTimeout(() => fail('call_too_long'), limits.callTimeoutMs);
  let patience = setTimeout(() => fail('upstream_unreachable'), limits.connectTimeoutMs);
  const waitFor = (ms: number, onExpired: () => void): void => {
    clearTimeout(patience);
    patience = setTimeout(onExpired, ms);
  };

  const settle = (outcome: CallOutcome, status: number | null): Promise<void> => {
    clearTimeout(wholeCall);
    clearTimeout(patience);
    recorded = recordEnd({ outcome, status, responseBytes, isStream: gate !== undefined, usage: meter?.usage() ?? null });
    return recorded;
  };

  const endWithFailure = async (code: FailureCode): Promise<void> => {
    const failed = failure(code);
    await settle(code, response.headersSent ? response.statusCode : failed.status);
    if (response.destroyed) return;
    waitFor(limits.idleTimeoutMs, () => response.destroy());
    if (!response.headersSent) sendFailure(response, provider, failed);
    else if (gate === undefined) response.destroy();
    else response.end((gate.torn ? '\n\n' : '') + provider.errorEvent(rest, failed));
  };

  const fail = (code: FailureCode): void => {
    if (recorded !== undefined) return;
    void endWithFailure(code);
    // Not after the record: the upstream must stop working for nobody at once.
    outgoing.destroy();
  };

  const complete = async (): Promise<void> => {
    if (recorded !== undefined) return;
    reader = undefined;
    for (const held of gate?.rest() ?? []) handOn(held);
    await settle('completed', response.statusCode);
    if (response.destroyed) return;
    waitFor(limits.idleTimeoutMs, () => response.destroy());
    response.end(lastBytes);
  };

  const handOn = (bytes: Buffer): void => {
    responseBytes += bytes.length;
    reader?.take(bytes);
    if (responseBytes === knownBytes) lastBytes = bytes;
    else if (!response.write(bytes)) incoming?.pause();
  };

  const onConnected = (): void => {
    connected = true;
    if (recorded === undefined) waitFor(limits.headersTimeoutMs, () => fail('upstream_timeout'));
  };

  const onResponse = (answer: IncomingMessage): void => {
    incoming = answer;
    answer.on('error', () => fail('upstream_broken')).on('close', () => fail('upstream_broken'));
    const refusal = recorded === undefined ? refusalOf(answer, outgoing.method) : null;
    if (refusal !== null) fail(refusal);
    if (recorded !== undefined) {
      outgoing.destroy();
      return;
    }
    const isStream = /^text\/event-stream(?:\s*;|\s*$)/i.test(answer.headers['content-type'] ?? '');
    if (!isStream) knownBytes = Number(answer.headers['content-length'] ?? Number.NaN);
    if (isStream) gate = eventGate(limits.maxEventBytes);
    // An error answer counts for nothing, as nobody is billed for it; nor does one that is fetched again, because it was counted.
    if (outgoing.method === 'POST' && answer.statusCode! < 300 && (isStream || isJson(answer))) {
      meter = provider.meter(rest);
      reader = isStream ? eventReader(meter) : jsonReader(meter);
    }
    response.socket?.setNoDelay(true);
    response.writeHead(answer.statusCode!, answerHeaders(answer, provider, isStream));
    // A stream's head must not wait for its first event; a body of known length follows on its head's heels.
    if (answer.headers['content-length'] === undefined || isStream) response.flushHeaders();
    waitFor(limits.idleTimeoutMs, () => {
      // Silence is the upstream's only while we are listening; else it is the client that takes nothing.
      if (response.writableNeedDrain) response.destroy();
      else fail('upstream_timeout');
    });
    answer
      .on('data', (chunk: Buffer) => {
        if (recorded !== undefined) return;
        patience.refresh();
        const ready = gate === undefined ? [chunk] : gate.push(chunk);
        if (ready === null) fail('upstream_event_too_long');
        else for (const bytes of ready) handOn(bytes);
      })
      .on('end', () => {
        // What is held may be the provider's last word, without its blank line.
        for (const held of gate?.rest() ?? []) reader?.take(held);
        reader?.end();
        if (isCutShort(answer, gate, meter)) fail('upstream_broken');
        else void complete();
      });
    response.on('drain', () => {
      if (recorded === undefined) patience.refresh();
      answer.resume();
    });
  };

  outgoing
    .on('socket', (socket: Socket) => {
      if (outgoing.reusedSocket || !(socket.connecting || upstream.secure)) onConnected();
      else socket.once(upstream.secure ? 'secureConnect' : 'connect', onConnected);
    })
    .on('response', onResponse)
    .on('error', () => fail(connected ? 'upstream_broken' : 'upstream_unreachable'))
    .on('close', () => {
      if (incoming === undefined) fail('upstream_broken');
    });

  response.on('close', () => {
    if (recorded === undefined) {
      // SDKs hang up at the last event, and do not wait for the end of the message.
      const outcome = gate !== undefined && meter?.isWhole() === true ? 'completed' : 'client_left';
      void settle(outcome, response.headersSent ? response.statusCode : null);
      outgoing.destroy();
    }
    clearTimeout(patience);
    void recorded?.then(() => resolve());
  });

  return { done, end: fail };
}

/** Why an answer is not handed on, judged by its head. */
function refusalOf({ statusCode = 0, headers }: IncomingMessage, method: string): FailureCode | null {
  if (statusCode >= 300 && statusCode < 400) return 'upstream_redirect';
  // Ours was refused, not the caller's, and the text of such an answer likes to quote part of the key.
  if (statusCode === 401) return 'upstream_key_refused';
  if (statusCode < 200 || statusCode > 599) return 'upstream_invalid';
  // It was asked for identity; what it compressed could neither be watched nor ended with an error event.
  if ((headers['content-encoding'] ?? 'identity').toLowerCase() !== 'identity') return 'upstream_invalid';
  // A page comes from something that stands before the provider, and an SDK would read it as an empty stream. A download may be one.
  if (statusCode < 300 && method === 'POST' && /^text\/html\b/i.test(headers['content-type'] ?? '')) return 'upstream_invalid';
  return null;
}

/**
 * Whether a stream ended without the provider's own last event. That its framing was whole says little: a process that dies while
 * it answers often ends its chunks in good order. One of known length was whole before it was sent.
 */
function isCutShort({ headers }: IncomingMessage, gate: EventGate | undefined, meter: Meter | undefined): boolean {
  return gate !== undefined && meter !== undefined && headers['content-length'] === undefined && meter.isWhole() === false;
}

function isJson({ headers }: IncomingMessage): boolean {
  return /^application\/json(?:\s*;|\s*$)/i.test(headers['content-type'] ?? '');
}

function answerHeaders({ headers }: IncomingMessage, provider: Provider, isStream: boolean): OutgoingHttpHeaders {
  const answer: OutgoingHttpHeaders = { 'cache-control': 'no-store', 'x-accel-buffering': 'no' };
  for (const name in headers) {
    if (
      SHARED_RESPONSE_HEADERS.has(name) ||
      provider.responseHeaders.has(name) ||
      provider.responseHeaderPrefixes.some((prefix) => name.startsWith(prefix))
    ) {
      answer[name] = headers[name];
    }
  }
  // Ours names the request in our logs; the upstream's is for its own support.
  if (headers['x-request-id'] !== undefined) answer['x-upstream-request-id'] = headers['x-request-id'];
  // An error event may have to follow what the upstream announced.
  if (isStream) delete answer['content-length'];
  return answer;
}
