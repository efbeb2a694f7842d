/**
 * The API's document as a judge: whatever the service answers must be declared there, status, media type, headers and JSON. Every
 * `caller` asks it for each answer, so that each suite is a test of the contract too.
 */
import { Ajv2020, type ValidateFunction } from 'ajv/dist/2020.js';
import formats from 'ajv-formats';

interface Described {
  readonly headers?: Readonly<Record<string, unknown>>;
  readonly content?: Readonly<Record<string, { readonly schema?: object }>>;
}

interface DescribedOperation {
  readonly operationId: string;
  readonly 'x-plane'?: string;
  readonly responses: Readonly<Record<string, Described>>;
}

export interface ApiDocument {
  readonly paths: Readonly<Record<string, Readonly<Record<string, DescribedOperation>>>>;
}

export interface Exchange {
  readonly method: string;
  /** With or without a query. */
  readonly path: string;
  readonly status: number;
  readonly headers: Headers;
  readonly text: string;
}

export interface Contract {
  readonly document: ApiDocument;
  /** The operation that a request is for; `null` for what no operation is for. */
  operationOf(method: string, path: string): string | null;
  /** What of an answer is not as declared; empty where all is. */
  breaches(exchange: Exchange): readonly string[];
}

const PROMISED_HEADERS = ['etag', 'set-auth-token', 'idempotency-replayed', 'x-request-id', 'retry-after', 'www-authenticate', 'location', 'content-disposition'];
const escaped = (text: string): string => text.replaceAll('~', '~0').replaceAll('/', '~1');

export function contractOf(document: ApiDocument): Contract {
  const ajv = new Ajv2020({ strict: false, allErrors: true });
  // A CommonJS module, whose default is a member of what is imported.
  (formats as unknown as { default: (to: Ajv2020) => void }).default(ajv);
  // Said by zod, and not known to the formats above.
  ajv.addFormat('base64', true);
  ajv.addSchema(document, 'api.json');
  const routes = Object.entries(document.paths).map(([path, methods]) => ({
    path,
    methods,
    // A path without parameters is meant where both fit.
    weight: path.split('{').length,
    pattern: new RegExp(`^${path.replaceAll('.', '\\.').replaceAll(/\{[^}]+\}/g, '[^/]+')}$`),
  })).toSorted((a, b) => a.weight - b.weight);
  const compiled = new Map<string, ValidateFunction>();

  function find(method: string, path: string): { readonly route: (typeof routes)[number]; readonly operation: DescribedOperation; readonly verb: string } | null {
    const pathname = path.split('?', 1)[0]!;
    const verb = method === 'HEAD' ? 'get' : method.toLowerCase();
    const route = routes.find(({ pattern, methods }) => pattern.test(pathname) && verb in methods);
    return route === undefined ? null : { route, operation: route.methods[verb]!, verb };
  }

  return {
    document,
    operationOf: (method, path) => find(method, path)?.operation.operationId ?? null,
    breaches({ method, path, status, headers, text }) {
      const found = find(method, path);
      // What a provider answers is its own.
      if (found === null || found.operation['x-plane'] === 'proxy') return [];
      const { route, operation, verb } = found;
      const described = operation.responses[String(status)];
      const name = `${operation.operationId} ${status}`;
      if (described === undefined) return [`${name} is not declared: ${text.slice(0, 200)}`];
      const faults: string[] = [];
      for (const header of PROMISED_HEADERS) {
        if (headers.has(header) && !(header in (described.headers ?? {}))) faults.push(`${name} has the header ${header}, which is not declared`);
      }
      const type = headers.get('content-type')?.split(';', 1)[0] ?? null;
      const types = Object.keys(described.content ?? {});
      if (method === 'HEAD') return faults;
      if (type === null) return types.length === 0 && text === '' ? faults : [...faults, `${name} has no content, and ${types.join(', ')} is declared`];
      const content = described.content?.[type];
      if (content === undefined) return [...faults, `${name} is ${type}, and ${types.join(', ') || 'nothing'} is declared`];
      if (content.schema === undefined || !/[/+]json$/.test(type)) return faults;
      const pointer = `api.json#/paths/${escaped(route.path)}/${verb}/responses/${status}/content/${escaped(type)}/schema`;
      const validate = compiled.get(pointer) ?? ajv.compile({ $ref: pointer });
      compiled.set(pointer, validate);
      if (!validate(JSON.parse(text))) {
        // Paths and rules only: what was answered may be secret.
        faults.push(...validate.errors!.map(({ instancePath, message, params }) => `${name}: ${instancePath || 'the body'} ${message} ${JSON.stringify(params)}`));
      }
      return faults;
    },
  };
}

const contracts = new Map<string, Promise<Contract | null>>();

/** The contract of the service at `origin`; `null` where it does not answer now. */
export async function contractAt(origin: string): Promise<Contract | null> {
  const fetched = contracts.get(origin) ?? fetchContract(origin);
  contracts.set(origin, fetched);
  const contract = await fetched;
  if (contract === null) contracts.delete(origin);
  return contract;
}

async function fetchContract(origin: string): Promise<Contract | null> {
  try {
    const response = await fetch(`${origin}/api/openapi.json`);
    return response.status === 200 ? contractOf((await response.json()) as ApiDocument) : null;
  } catch {
    return null;
  }
}
