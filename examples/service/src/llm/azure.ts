/**
 * OpenAI's models on Azure: the only file that knows its name and its paths. The dialect is OpenAI's.
 *
 * @see https://learn.microsoft.com/azure/ai-services/openai/reference
 */
import type { Failure } from './failures.ts';
import { ELSEWHERE, modelsInBody, NO_MODEL, UNCLEAR, type CallModels, type ModelQuestion } from './models.ts';
import { namesOpenaiModel, openaiAsks, openaiBodySize, openaiErrorBody, openaiErrorEvent, openaiMeter, openaiModels, openaiSpends } from './openai.ts';
import type { Asked, KeyOptions, Provider } from './provider.ts';

const PREFIX = '/proxy/azure/';
// Lists of models have one version for all deployments: the oldest that is generally available and still served.
const PROBE_VERSION = '2024-10-21';
const DEPLOYMENTS = 'openai/deployments/';
const DEPLOYMENT = /^openai\/deployments\/([^/]+)\//;
const ROOTS = /^openai\/(?:v1|deployments\/[^/]+)\//;

/** The path below the version or the deployment, or `null` for what is neither. */
function below(rest: string): string | null {
  const root = ROOTS.exec(rest)?.[0];
  return root === undefined || root.length === rest.length ? null : rest.slice(root.length);
}

/** The path as OpenAI has it: also that of a call of the resource, which has neither before it. */
const pathOf = (rest: string): string => below(rest) ?? rest.slice('openai/'.length);

/** A deployment in the path is the model, whatever a body says beside it; else the body names it as OpenAI's does. */
function models(rest: string, question: ModelQuestion): CallModels {
  const path = below(rest);
  const deployment = /^openai\/deployments\/([^/]+)\//.exec(rest)?.[1];
  if (path === null) return question.method === 'GET' && /^openai\/(?:models|deployments)$/.test(rest) ? NO_MODEL : ELSEWHERE;
  if (deployment === undefined) return openaiModels(path, question);
  if (!namesOpenaiModel(path, question.method)) return ELSEWHERE;
  const found = deployment.includes('%') ? null : modelsInBody(question);
  return found === null ? UNCLEAR : { kind: 'named', names: [deployment, ...found.inside] };
}

export const azure: Provider = Object.freeze({
  name: 'azure',
  title: 'Azure OpenAI',
  keyVariable: 'AZURE_OPENAI_API_KEY',
  baseUrlVariable: 'AZURE_OPENAI_ENDPOINT',
  // Each resource has a host of its own.
  defaultBaseUrl: null,
  baseUrlSuffix: '',
  prefix: PREFIX,
  aliases: new Map<string, string>(),
  // Lists of models and deployments, files and the like stand directly below: openai/models?api-version=…
  refusal: (rest: string) => (rest.startsWith('openai/') && rest.length > 'openai/'.length ? null : 'route_unknown'),
  models,
  bodySize: (rest: string, form: boolean) => openaiBodySize(pathOf(rest), form),
  query: (query: string) =>
    query
      .split('&')
      .filter((parameter) => parameter !== '' && !/^(?:api-key|subscription-key)(?:=|$)/i.test(parameter))
      .join('&'),
  requestHeaders: new Set(['openai-beta', 'idempotency-key']),
  responseHeaders: new Set(['retry-after-ms', 'x-should-retry', 'apim-request-id', 'x-ms-region']),
  responseHeaderPrefixes: ['openai-', 'x-ratelimit-'],
  authorization: (apiKey: string) => ({ 'api-key': apiKey }),
  probe: ({ apiVersion }: KeyOptions) => ({ rest: 'openai/models', query: `api-version=${apiVersion ?? PROBE_VERSION}`, headers: {} }),
  confinement: {
    // Elsewhere it is the body that names the model, and nobody here reads it: so nothing else is of the deployment.
    serves: (rest: string, deployment: string) => rest.startsWith(`${DEPLOYMENTS}${deployment}/`),
    versioned: (rest: string, query: string, apiVersion: string) =>
      !rest.startsWith(DEPLOYMENTS) || /(?:^|&)api-version=/i.test(query) ? query : [...(query === '' ? [] : [query]), `api-version=${apiVersion}`].join('&'),
  },
  errorBody: openaiErrorBody,
  errorEvent: (rest: string, failure: Failure) => openaiErrorEvent(pathOf(rest), failure),
  asks(rest: string, body: unknown): Asked {
    const asked = openaiAsks(pathOf(rest), body);
    // There the path decides, whatever the body says.
    return { ...asked, model: DEPLOYMENT.exec(rest)?.[1] ?? asked.model };
  },
  spends: (rest: string) => openaiSpends(pathOf(rest)),
  meter: (rest: string) => openaiMeter(pathOf(rest)),
});
